"""A folder as one zip file that other programs open."""

import io
import zipfile

import pytest

from dreambooth_jax.web import archive


def test_what_is_sent_is_a_zip_file_of_the_files(tmp_path):
    (tmp_path / 'a').write_bytes(b'x' * (3 * 2**20 + 5))
    (tmp_path / 'b').write_bytes(b'')
    files = {'model/unet/a': tmp_path / 'a', 'model/b': tmp_path / 'b'}
    pieces = list(archive.pieces(files))
    assert max(map(len, pieces)) < 2 * 2**20  # not all at once
    with zipfile.ZipFile(io.BytesIO(b''.join(pieces))) as found:
        assert found.testzip() is None and found.namelist() == list(files)
        assert found.read('model/unet/a') == (tmp_path / 'a').read_bytes()


def test_a_file_that_is_gone_ends_it(tmp_path):
    with pytest.raises(FileNotFoundError):
        list(archive.pieces({'a': tmp_path / 'a'}))
