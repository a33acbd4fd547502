"""One process at a time per folder. The lock is the operating system's: any death of its holder opens it."""

import contextlib
import datetime
import errno
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None

FILE = '.lock'
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
_held: set[Path] = set()  # by this process, which may come again


class LockError(RuntimeError):
    """Another process works in a folder; the message says which and what to do."""


@contextlib.contextmanager
def locked(folder: str | os.PathLike, advice: str, *, wait: bool = False) -> Iterator[None]:
    """Holds <folder>/.lock for the block; the folder is made if missing.

    Where the file system knows no locks, a warning says so and the block runs without.

    Args:
      advice: what to do instead, the end of the error's sentence.
      wait: until the other process is done, saying so, instead of the error.
    Raises: LockError if another process holds it; OSError if the folder cannot be written.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    path = Path(folder).resolve() / FILE
    if path in _held:
        yield
        return
    with _taken(path, Path(folder), advice, wait) as file:
        now = datetime.datetime.now().isoformat(' ', 'seconds')
        with contextlib.suppress(OSError):  # a full disk; the lock holds all the same
            file.truncate(0)
            file.write(f'process {os.getpid()} on {socket.gethostname()} since {now}'.encode())
        _held.add(path)
        try:
            yield
        finally:
            _held.discard(path)
            with contextlib.suppress(OSError):
                path.unlink()


def _taken(path: Path, folder: Path, advice: str, wait: bool):
    """The open file, locked. Not one that whoever held it before has removed meanwhile."""
    while True:
        file = open(path, 'ab+', buffering=0)  # unbuffered: on a full disk, closing must not fail
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
            raise OSError(error.errno, error.strerror, str(folder / FILE)) from None
        logging.warning('%s: the file system knows no locks; start no second run in this folder', folder)
