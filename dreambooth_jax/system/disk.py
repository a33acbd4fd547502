"""Writes files completely or not at all, and turns disk errors into sentences that name the file."""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

_FULL = (errno.ENOSPC, errno.EDQUOT)
# Libraries in other languages report these errors as errors of their own types, with the system's text inside.
_TOLD_IN_TEXT = (*_FULL, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENAMETOOLONG)
_unfinished: set[Path] = set()


@contextlib.contextmanager
def writing(path: str | os.PathLike) -> Iterator[Path]:
    """Yields the path of a temporary file beside `path`; it is moved to `path` after the block.

    If the block or the move fails, the temporary file is removed.

    Raises:
      OSError: with `path` as its filename.
    """
    path = Path(path)
    temporary = path.with_name(f'.{path.name}.part')
    with named(path), unfinished(temporary):
        yield temporary
        os.replace(temporary, path)


@contextlib.contextmanager
def unfinished(path: Path) -> Iterator[None]:
    """Removes the file or folder at `path` when the block ends, also if a signal ends the program inside the block."""
    _unfinished.add(path)
    try:
        yield
    finally:
        _remove(path)
        _unfinished.discard(path)


def remove_unfinished() -> None:
    """Removes everything that is being written now; called by a program that is about to end."""
    for path in list(_unfinished):
        _remove(path)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def named(path: str | os.PathLike) -> Iterator[None]:
    """Raises disk errors of the block again with `path` as their filename, which Python omits once a file is open."""
    try:
        yield
    except OSError as error:
        number = code(error)
        raise OSError(number, os.strerror(number) if number else str(error), str(path)) from None


def code(error: BaseException | None) -> int | None:
    """Returns the errno of an error, of one that caused it, or from their texts; None if it is no error of the disk."""
    while error is not None:
        if isinstance(error, OSError) and error.errno:
            return error.errno
        for number in _TOLD_IN_TEXT:
            if os.strerror(number) in str(error):
                return number
        error = error.__cause__ or error.__context__
    return None


def is_full(error: BaseException | None) -> bool:
    """Returns whether an error, or one that caused it, says that the disk is full."""
    return code(error) in _FULL


def reason(error: BaseException | None) -> str | None:
    """Returns why the disk refused, such as 'the disk is full'; None if it is no error of the disk."""
    number = code(error)
    if number in _FULL:
        return 'the disk is full; make room there and start the same command again'
    return os.strerror(number) if number else None


def sentence(error: OSError) -> str:
    """Returns a sentence for the user about a file that could not be read or written: its name and the reason."""
    if not error.filename:
        return reason(error) or str(error)
    path = Path(os.fsdecode(error.filename))
    if error.errno in _FULL:
        return f'{path.name} could not be written to {path.absolute().parent}: {reason(error)}'
    return f'{path}: {reason(error) or error}'
