"""How a process ends at once: with its code and last words, from any thread, and once (signals: test_signals.py)."""

from pathlib import Path

import pytest

from tests.support import script


def ended(code):
    process = script.start(code)
    out, error = process.communicate(timeout=60)
    return process.returncode, out, error


@pytest.mark.parametrize(
    'call',
    [
        "ending.end(7, 'enough')",
        "import threading; threading.Thread(target=ending.end, args=(7, 'enough')).start(); time.sleep(60)",
        "ending.end(7, 'enough') if True else print('never')\nprint('never')",
    ],
)
def test_a_process_ends_at_once_with_its_code_and_last_words(call):
    code = f'import time\nfrom dreambooth_jax.system import ending\n{call}'
    assert ended(code) == (7, '', '\nenough\n')


def test_what_is_half_written_is_removed_before_the_end(tmp_path):
    (tmp_path / 'old').write_text('whole')
    code = f"""
from pathlib import Path
from dreambooth_jax.system import disk, ending
with disk.writing(Path({str(tmp_path)!r}) / 'old') as new:
    new.write_text('half')
    ending.end(7, 'enough')"""
    assert ended(code)[0] == 7
    assert [(path.name, path.read_text()) for path in Path(tmp_path).iterdir()] == [('old', 'whole')]


def test_whoever_comes_second_neither_speaks_nor_ends():
    code = """
import threading, time
from dreambooth_jax.system import disk, ending
begun = threading.Event()
def slow():
    begun.set()
    time.sleep(0.5)
disk.remove_unfinished = slow
threading.Thread(target=ending.end, args=(7, 'first')).start()
begun.wait()
ending.end(8, 'second')
print('still here', flush=True)
time.sleep(60)"""
    assert ended(code) == (7, 'still here\n', '\nfirst\n')
