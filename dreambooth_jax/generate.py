"""Generates the images that are asked for in a run's folder, with its models kept loaded between requests.

  python -m dreambooth_jax.generate --workdir=runs/dog

The program serve starts it when somebody asks for images on a run's page, and waits for its turn with it, since it has
the devices for itself. It ends, and the devices are free, when nothing was asked for some minutes, or when a training
that serve has in its queue waits. Killed at any moment, it goes on where it was. For images that are asked for on the
command line there is the program sample, which generates the same ones.
"""

import os
from pathlib import Path

from absl import flags

from dreambooth_jax import program

_WORKDIR = program.DEFINE_path('workdir', None, "The run's folder; requests are in generated/ there.")
_IDLE = flags.DEFINE_float(
    'idle_minutes', 5.0, 'How long the models stay loaded when nothing is asked for.', lower_bound=0
)


def main(argv) -> None:
    del argv
    # Before JAX is imported: of a GPU's memory no more is taken than is needed.
    os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')
    from dreambooth_jax.finetune import answering
    from dreambooth_jax.finetune.run_models import RunModels
    from dreambooth_jax.generation.request_queue import RequestQueue
    from dreambooth_jax.system import cpu_devices, lock

    workdir = Path(_WORKDIR.value)
    models, queue = RunModels(workdir), RequestQueue(workdir)
    cpu_devices.use(models.settings.cpu_devices)
    with lock.locked(queue.folder, 'what is asked for is answered there'):
        queue.give_way(None)  # of an earlier process
        answering.answer_all(queue, models, 60 * _IDLE.value, program.explained)


if __name__ == '__main__':
    program.run(main, required=['workdir'])
