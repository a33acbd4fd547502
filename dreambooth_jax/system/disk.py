"""Files that are written whole or not at all, and errors of the disk as sentences that name the file."""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

_FULL = (errno.ENOSPC, errno.EDQUOT)
# What libraries in other languages say in the system's own words, inside errors of their own kinds.
_TOLD_IN_TEXT = (*_FULL, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENAMETOOLONG)
_unfinished: set[Path] = set()


@contextlib.contextmanager
def writing(path: str | os.PathLike) -> Iterator[Path]:
    """A new file beside `path` to write into; it is moved there after the block, or removed if that fails.

    Raises: OSError, with `path` as its filename.
    """
    path = Path(path)
    temporary = path.with_name(f'.{path.name}.part')
    with named(path), unfinished(temporary):
        yield temporary
        os.replace(temporary, path)


@contextlib.contextmanager
def unfinished(path: Path) -> Iterator[None]:
    """What is left at `path`, file or folder, after the block is removed: also if a signal ends the program there."""
    _unfinished.add(path)
    try:
        yield
    finally:
        _remove(path)
        _unfinished.discard(path)


def remove_unfinished() -> None:
    """Removes what is being written at this moment; for a program that ends there."""
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
    """Errors of the disk name `path`: Python does not know it once a file is open."""
    try:
        yield
    except OSError as error:
        number = code(error)
        raise OSError(number, os.strerror(number) if number else str(error), str(path)) from None


def code(error: BaseException | None) -> int | None:
    """The errno behind an error, of itself, of one that it came from, or by its text; None if the disk has no part."""
    while error is not None:
        if isinstance(error, OSError) and error.errno:
            return error.errno
        for number in _TOLD_IN_TEXT:
            if os.strerror(number) in str(error):
                return number
        error = error.__cause__ or error.__context__
    return None


def reason(error: BaseException | None) -> str | None:
    """What the disk has against a file, such as 'the disk is full'; None if it is not the disk."""
    number = code(error)
    if number in _FULL:
        return 'the disk is full; make room there and start the same command again'
    return os.strerror(number) if number else None


def sentence(error: OSError) -> str:
    """What to tell people about a file that could not be written or read: its name, its folder and the reason."""
    if not error.filename:
        return reason(error) or str(error)
    path = Path(os.fsdecode(error.filename))
    if error.errno in _FULL:
        return f'{path.name} could not be written to {path.absolute().parent}: {reason(error)}'
    return f'{path}: {reason(error) or error}'
