"""Which programs wait for one that works in the same folder, which are refused, and which need not."""

import logging

import pytest

from dreambooth_jax.generation import class_images
from dreambooth_jax.system import lock
from tests.support import script, smallest_pipelines


def test_class_images_are_locked_while_some_are_missing(hold, tmp_path, caplog):
    """A folder that holds all of them is only read, so it need not be one that can be written."""
    files = [class_images.ClassImage(tmp_path / 'a.png', 'a dog', None)]
    holder = hold(tmp_path, 0.5)
    with caplog.at_level(logging.WARNING), class_images._alone(tmp_path, files):
        assert f'in use by process {holder.pid}' in caplog.text and holder.wait(5) == 0
    assert list(tmp_path.iterdir()) == []
    files[0].path.touch()
    with class_images._alone(tmp_path, files):
        assert not (tmp_path / lock.FILE).exists()


@pytest.mark.parametrize('name', ['train', 'pretrain'])
def test_a_program_is_refused_while_another_works_in_its_folder(name, program, hold, tmp_path):
    holder = hold(tmp_path / 'run')
    config = 'configs/dog.py' if name == 'train' else 'configs/storybook_base.py'
    ended = program(name, f'--config={script.ROOT / config}', f'--workdir={tmp_path / "run"}')
    assert ended.code == 1 and f'run is in use by process {holder.pid} on ' in ended.error.splitlines()[-1]
    assert sorted(path.name for path in (tmp_path / 'run').iterdir()) == [lock.FILE]


def test_a_run_in_training_can_be_looked_at(program, hold, tmp_path):
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run' / 'model').symlink_to(smallest_pipelines.folder('pixels'))
    hold(tmp_path / 'run')
    assert program('find_identifier', f'--model={tmp_path / "run"}').code == 0
