"""One of several hosts of a training, started by test_hosts.py.

python -m tests.support.training_host PLACEMENT PORT NUMBER HOSTS FOLDER
"""

import os
import signal
import sys
from pathlib import Path

import tests.conftest  # noqa: F401  must come before jax


def main(placement_name: str, port: str, number: str, hosts: str, folder: str) -> None:
    import jax

    jax.distributed.initialize(f'localhost:{port}', num_processes=int(hosts), process_id=int(number))

    from dreambooth_jax.training.hosts import json_of_first
    from dreambooth_jax.training.placement import make_placement
    from tests.support import toy
    from tests.training import test_train_run

    assert jax.process_count() == int(hosts) and jax.device_count() == 4
    toy.PLACEMENTS['hosts'] = lambda: make_placement(placement_name, fsdp_min_bytes=128)

    def data(step):
        if asked and step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return toy.frozen()

    asked = number == '1'  # only this host gets a signal; the others learn of it from this host
    state, finished = test_train_run.train(Path(folder), 'hosts', data, steps=20, save_every=2)
    assert not finished
    print('stopped at', int(state.step))
    asked = False
    state, finished = test_train_run.train(Path(folder), 'hosts', data, steps=6, save_every=2)
    assert finished and int(state.step) == 6

    # What one host knows all know, and all give the best state, whose checkpoint is kept.
    told = json_of_first(lambda: {'host': number, 'numbers': [0.1, None], 'text': 'ä'})
    assert told == {'host': '0', 'numbers': [0.1, None], 'text': 'ä'}
    choice = test_train_run.Choice(2, {2: 0.1, 4: 0.9, 6: 0.3, 8: 0.2}, last=8)
    best = Path(folder) / 'best'
    state, finished = test_train_run.train(best, 'hosts', data, steps=20, save_every=2, callbacks=[choice])
    assert finished and int(state.step) == 4 and test_train_run.saved(best) == [4, 6, 8]


if __name__ == '__main__':
    main(*sys.argv[1:])
