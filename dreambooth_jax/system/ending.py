"""Ends a program at once on Ctrl-C (SIGINT) or SIGTERM, with exit code 130 or 143, as shells expect.

Python's own way is to raise an exception wherever the main thread is. This may be in a callback of a library, which
swallows the exception or crashes. Here nothing is raised and the process ends immediately. This is safe because files
are written under temporary names and then moved (disk.py), and unfinished files are removed first.

A thread is told of signals by Python's C code, so they also work while the main thread is inside a long compilation. If
a program has its own handler, as training has (training/loop.py), that handler is called first; a second Ctrl-C then
ends the program.
"""

import contextlib
import os
import signal
import sys
import threading

from dreambooth_jax.system import disk

_NAMES = {signal.SIGINT: 'Ctrl-C', signal.SIGTERM: 'SIGTERM'}
_once = threading.Lock()


def end_on_signals() -> None:
    """Makes the two signals end this process from now on. A signal that it was started to ignore (nohup) is ignored."""
    if signal.getsignal(signal.SIGTERM) is _end:
        return
    for number in _NAMES:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _end)
    heard, tell = os.pipe()
    os.set_blocking(tell, False)
    signal.set_wakeup_fd(tell, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(heard,), name='signals', daemon=True).start()
    if hasattr(signal, 'pthread_sigmask'):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _NAMES)  # one that came during the start (huge_pages.py) ends it now


def _watch(heard: int) -> None:
    asked = None  # the handler that has already been called for a Ctrl-C
    while True:
        for number in os.read(heard, 64):
            if number in _NAMES:
                handler = signal.getsignal(number)
                if handler is _end or (number == signal.SIGINT and handler is asked):
                    _end(number)
                asked = handler if number == signal.SIGINT else asked


def _end(number: int, frame=None) -> None:
    end(128 + number, f'stopped by {_NAMES[number]}')


def end(code: int, last_words: str) -> None:
    """Ends this process at once, from any thread, without waiting for anything; unfinished files are removed."""
    if not _once.acquire(blocking=False):
        return  # another thread is already ending the process
    # Written directly to the file descriptor, because the main thread may be inside sys.stderr and hold its lock.
    with contextlib.suppress(OSError):
        os.write(2, f'\n{last_words}\n'.encode())
    with contextlib.suppress(Exception):
        disk.remove_unfinished()
    if multiprocessing := sys.modules.get('multiprocessing'):
        with contextlib.suppress(Exception):
            for child in multiprocessing.active_children():
                child.kill()
    os._exit(code)
