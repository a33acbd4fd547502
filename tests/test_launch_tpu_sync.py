"""How launch_tpu.sh brings a run home: what is new, whole, and no more than there is; see test_launch_tpu.py."""

import shutil

import pytest

from tests.test_launch_tpu import HERE, TRAIN, World


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def test_the_run_comes_home_while_it_trains(world):
    here = world.cwd / 'runs/dog/config.json'
    world.program(
        f'end = time.time() + 60\nwhile not os.path.exists({str(here)!r}) and time.time() < end: time.sleep(0.1)'
    )
    result = world.launch(*HERE, '--sync=1', *TRAIN)
    assert result.returncode == 0, result.stderr
    assert world.verbs.count('scp') >= 3  # the code, at least one copy meanwhile, and the last


SAVES = """
import shutil
here = pathlib.Path({here!r})

def put(name, text):
    path = run / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)

def wait(name):
    end = time.time() + 60
    while not (here / name).exists() and time.time() < end: time.sleep(0.05)
    print('came home:', name, (here / name).exists())

put('base/checkpoints/2/weights', 'two')
put('base/checkpoints/4.orbax-checkpoint-tmp/weights', 'half')
put('metrics.jsonl', '2')
wait('base/checkpoints/2/weights')
shutil.rmtree(run / 'base/checkpoints/2')
(run / 'base/checkpoints/4.orbax-checkpoint-tmp').rename(run / 'base/checkpoints/4')
put('metrics.jsonl', '24')
put('samples/4.png', 'four')
wait('samples/4.png')
put('.lock', 'me')
"""


def test_a_copy_brings_what_is_new_and_whole_and_deletes_the_checkpoints_that_are_gone(world):
    here = world.cwd / 'runs/dog'
    world.program(SAVES.format(here=str(here)))
    result = world.launch(*HERE, '--sync=1', *TRAIN)
    assert result.returncode == 0, result.stderr
    assert 'came home: base/checkpoints/2/weights True' in result.stdout
    assert 'came home: samples/4.png True' in result.stdout
    assert [path.name for path in (here / 'base/checkpoints').iterdir()] == ['4']
    assert (here / 'base/checkpoints/4/weights').read_text() == 'half'
    assert (here / 'metrics.jsonl').read_text() == '24'
    assert not (here / '.lock').exists() and not list((world.cwd / 'runs').glob('.*'))
    last = world.vm / 'home/dreambooth/runs/.dog.sync/new'
    assert {path.name for path in last.iterdir()} <= {'.synced', 'launch_tpu.log'}  # the last copy found little new


def test_a_copy_that_does_not_arrive_is_made_up_for_by_the_next_one(world):
    world.program(
        "(run / 'late').touch()\nif not (vm / 'once').exists(): (vm / 'scp_fails').write_text('broken pipe')\n(vm / "
        "'once').touch()"
    )
    assert world.launch(*HERE, *TRAIN).returncode == 1
    (world.vm / 'scp_fails').unlink()
    assert world.launch(*HERE, *TRAIN).returncode == 0
    assert (world.cwd / 'runs/dog/late').exists()


def test_a_checkpoint_that_was_deleted_while_it_was_linked_is_not_taken_over(world):
    find = shutil.which('find')
    (world.bin / 'find').write_text(
        '#!/bin/bash\n'
        '[[ $2 != -path ]] || rm -rf base/checkpoints/2\n'  # before the second look
        f'{find} "$@"\n'
        '[[ $2 != -name ]] || rm -f base/checkpoints/2/weights\n'  # after the first
        'exit 0\n'
    )
    (world.bin / 'find').chmod(0o755)
    world.program(
        "for name in ('weights', 'config'):\n"
        "    path = run / 'base/checkpoints/2' / name\n"
        '    path.parent.mkdir(parents=True, exist_ok=True)\n'
        '    path.write_text(name)'
    )
    result = world.launch(*HERE, *TRAIN)
    assert result.returncode == 0, result.stderr
    assert (world.cwd / 'runs/dog/config.json').exists()
    assert not (world.cwd / 'runs/dog/base/checkpoints/2').exists()
