"""What a console cannot show is escaped, and a console that is gone ends a program quietly."""

import subprocess
import sys

import pytest

from tests.support import script

# Encodings as Python gets them: forced, and of a C locale where it may not switch to UTF-8.
NARROW = {
    'cp1252': {'PYTHONIOENCODING': 'cp1252'},
    'ascii': {'LC_ALL': 'C', 'PYTHONUTF8': '0', 'PYTHONCOERCECLOCALE': '0'},
}


@pytest.mark.parametrize('name', NARROW)
def test_output_that_the_console_cannot_show_is_escaped(name):
    body = "print('a sks \\u72ac \\udcff'); raise program.ConfigError('no \\u72ac')"
    ended = script.run(body, **NARROW[name])
    assert (ended.returncode, ended.stdout, ended.stderr) == (1, b'a sks \\u72ac \\udcff\n', b'no \\u72ac\n')


@pytest.mark.parametrize('name', NARROW)
def test_warnings_and_progress_bars_are_shown_in_any_console(name):
    body = """
import logging, tqdm
logging.warning('\\u72ac is skipped')
for _ in tqdm.tqdm(range(2), desc='\\u72ac'): pass
"""
    ended = script.run(body, **NARROW[name])
    assert ended.returncode == 0 and b'\\u72ac is skipped' in ended.stderr and b'\\u72ac: 100%' in ended.stderr
    assert b'Traceback' not in ended.stderr and ended.stderr.isascii()


def test_a_console_that_can_show_it_gets_it_as_it_is():
    assert script.run("print('\\u72ac')", PYTHONIOENCODING='utf-8').stdout == '\u72ac\n'.encode()


def test_a_prompt_that_the_console_could_not_pass_on_is_one_sentence(program, tmp_path):
    ended = program('sample', '--model=storybook', '--prompt=a \udcff', f'--output={tmp_path / "out"}')
    assert ended == (1, '', "--prompt is 'a \\udcff', which is not UTF-8; set LC_ALL=C.UTF-8 first")
    assert not (tmp_path / 'out').exists()


def test_output_that_nobody_reads_ends_the_program_without_a_word():
    body = "for i in range(100000): print('a line that fills the pipe', i)"
    started = subprocess.Popen(
        script.command(body), env=script.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert started.stdout.readline() == b'a line that fills the pipe 0\n'
    started.stdout.close()  # as `| head -1` does
    assert started.stderr.read() == b'' and started.wait(60) == 141


def test_a_closed_console_is_written_to_in_vain():
    shell = '"$@" >&- 2>&-'
    words = script.command('import tqdm\nprint(1)\nfor _ in tqdm.tqdm(range(2)): pass')
    assert subprocess.run(['bash', '-c', shell, 'bash', *words], env=script.environment(), timeout=60).returncode == 0


def test_a_full_disk_under_the_output_is_one_sentence():
    with open('/dev/full', 'w') as full:
        ended = subprocess.run(
            script.command('print(1)'), env=script.environment(), stdout=full, stderr=subprocess.PIPE
        )
    assert (ended.returncode, ended.stderr.count(b'\n')) == (1, 1) and b'the disk is full; make room' in ended.stderr


@pytest.mark.slow
@pytest.mark.parametrize('name', NARROW)
def test_a_dry_run_in_a_narrow_console_tells_its_plan(name, tmp_path):
    config = tmp_path / 'config.py'
    config.write_text(
        'from configs.dog import get_config as dog\n\ndef get_config():\n    config = dog()\n'
        "    config.data.instance_prompt, config.data.class_prompt = 'a sks \u72ac', 'a \u72ac'\n    return config\n",
        'utf-8',
    )
    arguments = f'--config={config}', f'--workdir={tmp_path / "run"}', '--dry_run'
    words = [sys.executable, '-m', 'dreambooth_jax.train', *arguments]
    ended = subprocess.run(words, env=script.environment(**NARROW[name]), capture_output=True, timeout=300)
    assert ended.returncode == 0 and b'a sks \\u72ac' in ended.stdout, ended.stderr
