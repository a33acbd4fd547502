"""Allows one process at a time in a folder. The operating system releases the lock however its holder ends."""

import contextlib
import datetime
import errno
import logging
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

try:
    import fcntl
except ImportError:  # Windows does not have it
    fcntl = None

FILE = '.lock'
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
_HOLDER = re.compile(r'process (\d+) on (\S+) since (.+)')  # what the file says
_held: set[Path] = set()  # locks of this process, which may enter the same folder again


class LockError(RuntimeError):
    """Another process works in the folder; the message says which one and what to do."""


class Holder(NamedTuple):
    """The process that a lock file names. It may have been killed since, which leaves the file.

    Attributes:
      pid: its number on its machine.
      host: the machine's name.
      since: when it took the lock, in seconds since 1970, on that machine's clock.
    """

    pid: int
    host: str
    since: float


def holder(folder: str | os.PathLike) -> Holder | None:
    """Returns whom the lock file of a folder names, without touching the lock; None if there is no such file."""
    try:
        found = _HOLDER.fullmatch((Path(folder) / FILE).read_text('utf-8'))
        return found and Holder(int(found[1]), found[2], datetime.datetime.fromisoformat(found[3]).timestamp())
    except (OSError, ValueError):  # a file that is not whole is being written
        return None


@contextlib.contextmanager
def locked(folder: str | os.PathLike, advice: str, *, wait: bool = False, file: str = FILE) -> Iterator[None]:
    """Holds the lock <folder>/<file> during the block; creates the folder if it is missing.

    If the file system does not support locks, the block runs without one and a warning says so.

    Args:
      folder: the folder to lock.
      advice: what the user can do instead, as the end of the error's sentence.
      wait: whether to wait for the other process, with a message, instead of raising the error.
      file: name of the lock's file; work of another kind in the same folder takes another one.

    Raises:
      LockError: if another process holds the lock.
      OSError: if the folder cannot be written.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    path = Path(folder).resolve() / file
    if path in _held:
        yield
        return
    with _taken(path, Path(folder), advice, wait) as opened:
        now = datetime.datetime.now().isoformat(' ', 'seconds')
        with contextlib.suppress(OSError):  # the disk may be full, but the lock is held anyway
            opened.truncate(0)
            opened.write(f'process {os.getpid()} on {socket.gethostname()} since {now}'.encode())
        _held.add(path)
        try:
            yield
        finally:
            _held.discard(path)
            with contextlib.suppress(OSError):
                path.unlink()


def _taken(path: Path, folder: Path, advice: str, wait: bool):
    """Returns the open, locked file. It is opened again if its previous holder has meanwhile removed it."""
    while True:
        file = open(path, 'ab+', buffering=0)  # unbuffered, so that closing it cannot fail on a full disk
        try:
            _lock(file, folder, advice, wait)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    return file
        except BaseException:
            file.close()
            raise
        file.close()


def _lock(file, folder: Path, advice: str, wait: bool) -> None:
    if fcntl is None:
        return
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().decode('utf-8', 'replace').strip() or 'another process'
            if not wait:
                raise LockError(f'{folder} is in use by {holder}; {advice}') from None
            logging.warning('%s is in use by %s; waiting for it to end', folder, holder)
            fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise OSError(error.errno, error.strerror, str(folder / Path(file.name).name)) from None
        logging.warning('%s: the file system knows no locks; start no second run in this folder', folder)
