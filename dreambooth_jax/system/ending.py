"""How a program ends when Ctrl-C (SIGINT) or SIGTERM tells it to: at once, with 130 or 143, as shells say it.

Python's own way, an exception wherever the main thread happens to be, may fall into a callback of a library, which
swallows it or crashes. Here nothing is raised: the process ends there and then. It may, because files are written
beside their places and moved there whole (disk.py), and what is unfinished is removed first.

A thread hears of signals from Python's C code, so they count while the main thread is inside a long compilation too.
Whoever sets a handler of its own, as training does (training/loop.py), is asked first; a second Ctrl-C then ends.
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
    """From now on the signals end this process. Those that it was started to ignore (nohup) stay ignored."""
    if signal.getsignal(signal.SIGTERM) is _end:
        return
    for number in _NAMES:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _end)
    heard, tell = os.pipe()
    os.set_blocking(tell, False)
    signal.set_wakeup_fd(tell, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(heard,), name='signals', daemon=True).start()


def _watch(heard: int) -> None:
    asked = None  # whose handler has had a Ctrl-C already
    while True:
        for number in os.read(heard, 64):
            if number in _NAMES:
                handler = signal.getsignal(number)
                if handler is _end or (number == signal.SIGINT and handler is asked):
                    _end(number)
                asked = handler if number == signal.SIGINT else asked


def _end(number: int, frame=None) -> None:
    if not _once.acquire(blocking=False):
        return  # another thread is at it
    # Straight to the file descriptor: the main thread may be inside sys.stderr, and hold its lock.
    with contextlib.suppress(OSError):
        os.write(2, f'\nstopped by {_NAMES[number]}\n'.encode())
    with contextlib.suppress(Exception):
        disk.remove_unfinished()
    if multiprocessing := sys.modules.get('multiprocessing'):
        with contextlib.suppress(Exception):
            for child in multiprocessing.active_children():
                child.kill()
    os._exit(128 + number)
