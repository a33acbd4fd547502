"""Huge pages for the memory of a program, which make JAX on CPU faster.

Every dispatch of XLA on CPU takes its buffers from the C library and gives them back. Linux then clears each page of
them anew when it is first touched, and with pages of 4 KiB this takes a good part of a training step
(experiments/speed/README.md has the numbers). Most distributions give huge pages (2 MiB) only to memory for which they
are asked. The GNU C library asks if its tunable glibc.malloc.hugetlb is 1, which it reads when a process starts. A
program therefore starts itself once more, before it imports anything slow.

Source: manual of the GNU C library, "Memory Allocation Tunables"; Linux, Documentation/admin-guide/mm/transhuge.rst.
"""

import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

_VARIABLE = 'GLIBC_TUNABLES'
_ASK = 'glibc.malloc.hugetlb=1'
_FIRST_LIBRARY = (2, 35)  # the first version with this tunable
_MODE = Path('/sys/kernel/mm/transparent_hugepage/enabled')


def use() -> None:
    """Starts this process anew with huge pages, under the same process id, if Linux would not give them otherwise.

    Nothing happens if the variable GLIBC_TUNABLES is set, to whatever value.
    """
    environment = asking(os.environ)
    if environment is None or not sys.executable:
        return
    # A signal that comes while Python starts again waits until ending.end_on_signals is called there.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        os.execve(sys.executable, sys.orig_argv, environment)
    except OSError:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)  # slower, as it was before


def asking(environment: Mapping[str, str], mode: Path = _MODE) -> dict[str, str] | None:
    """Returns an environment in which the C library asks for huge pages; None if that is of no use.

    Args:
      environment: of this process.
      mode: the file in which Linux says who gets huge pages, such as "always [madvise] never".
    """
    if _VARIABLE in environment or _library() < _FIRST_LIBRARY:
        return None
    try:
        if '[madvise]' not in mode.read_text():
            return None
    except OSError:
        return None
    return {**environment, _VARIABLE: _ASK}


def _library() -> tuple[int, ...]:
    """Returns the version of the GNU C library, (0,) if this is another one."""
    try:
        name, version = os.confstr('CS_GNU_LIBC_VERSION').split()
        return tuple(map(int, version.split('.'))) if name == 'glibc' else (0,)
    except (AttributeError, OSError, ValueError):
        return (0,)
