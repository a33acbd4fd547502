"""Files are whole or not there, and what the disk has against them is a sentence that names them."""

import errno
import os

import pytest

from dreambooth_jax.system import disk

FULL = 'the disk is full; make room there and start the same command again'


def test_a_file_is_written_whole(tmp_path):
    with disk.writing(tmp_path / 'x.json') as new:
        new.write_text('new')
        assert not (tmp_path / 'x.json').exists()
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [('x.json', 'new')]


@pytest.mark.parametrize('kind', [OSError(errno.ENOSPC, 'x'), ValueError('wrong'), KeyboardInterrupt()], ids=repr)
def test_a_file_that_could_not_be_written_leaves_the_old_one(kind, tmp_path):
    (tmp_path / 'x').write_text('old')
    with pytest.raises(type(kind)) as caught, disk.writing(tmp_path / 'x') as new:
        new.write_text('half')
        raise kind
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [('x', 'old')]
    if isinstance(kind, OSError):
        assert disk.sentence(caught.value) == f'x could not be written to {tmp_path}: {FULL}'


def test_what_is_unfinished_is_removed_at_a_sudden_end_and_later_files_are_not(tmp_path):
    (tmp_path / 'folder').mkdir()
    (tmp_path / 'folder' / 'file').touch()
    (tmp_path / 'done').touch()
    with disk.unfinished(tmp_path / 'done.part'):
        pass
    with disk.unfinished(tmp_path / 'folder'), disk.unfinished(tmp_path / 'never begun'):
        disk.remove_unfinished()
        assert [path.name for path in tmp_path.iterdir()] == ['done']


CAUSES = {
    'itself': (OSError(errno.ENOSPC, 'No space left on device'), FULL),
    'quota': (OSError(errno.EDQUOT, 'Disk quota exceeded'), FULL),
    'read_only': (OSError(errno.EROFS, 'Read-only file system'), 'Read-only file system'),
    'of_another_language': (ValueError("RESOURCE_EXHAUSTED: write 9 bytes: No space left on device [code='28']"), FULL),
    'permission_in_text': (ValueError('Error writing "x": Permission denied'), 'Permission denied'),
    'not_of_the_disk': (ValueError('a shape does not fit'), None),
}


@pytest.mark.parametrize('name', CAUSES)
def test_the_reason_is_found_in_the_error_or_where_it_comes_from(name):
    error, reason = CAUSES[name]
    assert disk.reason(error) == reason
    try:
        try:
            raise error
        except Exception as caught:
            raise RuntimeError('the save failed') from caught
    except RuntimeError as later:
        assert disk.reason(later) == reason


def test_an_error_without_a_file_gets_the_name_of_the_one_it_is_about(tmp_path):
    with pytest.raises(OSError) as caught, disk.named(tmp_path / 'metrics.jsonl'), open('/dev/full', 'w') as full:
        full.write('x')
    assert disk.sentence(caught.value) == f'metrics.jsonl could not be written to {tmp_path}: {FULL}'


@pytest.mark.parametrize('path', ['nowhere', b'nowhere', 'nowhere/else'])
def test_other_errors_name_the_file_and_what_happened(path):
    with pytest.raises(OSError) as caught:
        os.stat(path)
    assert disk.sentence(caught.value) == f'{os.fsdecode(path)}: No such file or directory'
