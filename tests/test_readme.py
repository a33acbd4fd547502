"""What README.md says is so: its commands, settings, programs, files and examples exist."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from dreambooth_jax.config import DreamBoothConfig, PretrainConfig, resolve, to_config_dict

ROOT = Path(__file__).parents[1]
README = (ROOT / 'README.md').read_text('utf-8')
CI = (ROOT / '.ci/run').read_text('utf-8')
HELP = (ROOT / 'launch_tpu.sh').read_text('utf-8')
SHELL = re.findall(r'```bash\n(.*?)```', README, re.DOTALL)
PYTHON = re.findall(r'```python\n(.*?)```', README, re.DOTALL)


def block(name):
    """The lines of the code block or table after the comment <!-- name -->."""
    found = re.search(rf'^<!-- {name} -->\n(?:```\w*\n(.*?)^```$|((?:^\|[^\n]*\n)+))', README, re.DOTALL | re.MULTILINE)
    assert found, f'README.md has nothing after <!-- {name} -->'
    return (found[1] or found[2]).splitlines()


def cells(name):
    """The rows of a table, without its head, as lists of cells."""
    return [[cell.strip() for cell in row.strip('|').split(' | ')] for row in block(name)[2:]]


def programs():
    """(program, its arguments) of every command in README.md and in launch_tpu.sh's help."""
    commands = re.findall(r'python3? -m dreambooth_jax\.(\w+)([^`\n]*)', README)
    return sorted({(name, rest.strip()) for name, rest in commands})


def setting_names(settings, prefix=''):
    for name, value in settings.items():
        yield prefix + name
        if hasattr(value, 'items'):
            yield from setting_names(value, f'{prefix}{name}.')


SETTINGS = {name for root in (DreamBoothConfig, PretrainConfig) for name in setting_names(to_config_dict(root()))}


def test_ci_runs_the_test_commands_of_the_readme():
    extract = re.search(r'^readme_commands\(\).*$', CI, re.MULTILINE)[0]
    found = subprocess.run(
        ['bash', '-c', f'{extract}\nreadme_commands tests'], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert found.stdout.splitlines() == block('tests') != []
    assert block('tests')[-1] == 'python -m pytest -n 2 --dist loadfile'  # the whole suite, no folder of it
    assert re.search(r'^readme_commands tests > (\S+)$.*^bash -euo pipefail \1', CI, re.DOTALL | re.MULTILINE)
    # The slow ones besides, the longest first, and nothing else of its own.
    slow = f'{block("tests")[-1]} --no-loadscope-reorder -m slow < /dev/null'
    assert re.findall(r'^.*pytest.*$', CI, re.MULTILINE) == [slow]


def test_ci_runs_the_main_job_of_the_readme_with_fewer_steps():
    program, *arguments = shlex.split(block('main job')[-1].removeprefix('python -m '))
    assert f'-m {program}' in CI
    for name in arguments:
        assert name.split('=')[0] in CI
    assert 'configs/dog.py' in CI


@pytest.mark.parametrize(('name', 'arguments'), programs())
def test_every_program_has_the_flags_that_are_named(name, arguments):
    source = (ROOT / 'dreambooth_jax' / f'{name}.py').read_text('utf-8')
    row = next((row for row in cells('programs') if f'dreambooth_jax.{name} ' in row[0] + ' '), [''] * 2)
    for flag in set(re.findall(r'--(\w+)', arguments + (row[1] if arguments in row[0] else ''))):
        assert re.search(rf"DEFINE_\w+\(\s*'{flag}'", source), f'{name} has no flag --{flag}'


def test_every_program_is_named():
    there = {
        path.stem for path in (ROOT / 'dreambooth_jax').glob('*.py') if 'if __name__ ==' in path.read_text('utf-8')
    }
    assert there == {name for name, _ in programs()}


@pytest.mark.parametrize('source', ['README.md', '.ci/run', 'launch_tpu.sh'])
def test_every_setting_that_is_named_exists(source):
    text = (ROOT / source).read_text('utf-8')
    names = set(re.findall(r'--config\.([a-z0-9_]+(?:\.[a-z0-9_]+)*)', text))
    if source == 'README.md':
        groups = '|'.join({name.split('.')[0] for name in SETTINGS if '.' in name})
        names |= set(re.findall(rf'`((?:{groups})\.[a-z0-9_]+)`', text))
    assert names
    assert [name for name in sorted(names) if name not in SETTINGS] == []


@pytest.mark.parametrize(('name', 'default'), [row[:2] for row in cells('settings')])
def test_every_default_is_the_one_of_the_code(name, default):
    value = DreamBoothConfig()
    for part in name.strip('`').split('.'):
        value = getattr(value, part)
    assert default.strip('`') == repr(value)


@pytest.mark.parametrize('code', PYTHON)
def test_every_example_config_resolves(code):
    names = {}
    exec(code, names)
    resolve(DreamBoothConfig, names['get_config']())


@pytest.mark.parametrize('path', sorted(set(re.findall(r'\]\((?!https?:|#)([^)\s]+)\)', README))))
def test_every_link_leads_somewhere(path):
    assert (ROOT / path).exists()


@pytest.mark.parametrize('source', ['README.md', 'launch_tpu.sh', '.ci/run'])
def test_every_config_file_that_is_named_exists(source):
    names = set(re.findall(r'configs/\w+\.py', (ROOT / source).read_text('utf-8')))
    names -= {'configs/cat.py'}  # the reader writes it
    assert [name for name in sorted(names) if not (ROOT / name).exists()] == []


def test_every_option_of_the_launcher_that_is_named_exists():
    commands = re.findall(r'\./launch_tpu\.sh (.*?)(?: -- |$)', README, re.MULTILINE)
    section = re.search(r'^## On TPUs$(.*?)^## ', README, re.DOTALL | re.MULTILINE)[1]
    names = set(re.findall(r'--[a-z_]+', ' '.join(commands))) | set(re.findall(r'`(--[a-z_]+)', section))
    assert {'--dry_run', '--help'} < names
    assert [name for name in sorted(names) if not re.search(rf'^  {name}\b', HELP, re.MULTILINE)] == []


def test_the_tree_is_the_one_of_the_package():
    package, top = set(), set()
    for line in block('tree'):
        words = re.match(r'[^ ].*|  [^ ]+( [\w.]+\.py)*', line)[0].split()
        (package if line.startswith('  ') else top).update(words if line.startswith('  ') else words[:1])
    assert [name for name in sorted(top) if not (ROOT / name).exists()] == []
    assert [name for name in sorted(package) if not (ROOT / 'dreambooth_jax' / name).exists()] == []
    folders = {f'{path.parent.name}/' for path in (ROOT / 'dreambooth_jax').glob('*/__init__.py')}
    programs_and_folders = folders | {f'{name}.py' for name, _ in programs()}
    assert programs_and_folders <= package


def test_shell_commands_can_be_parsed():
    for commands in SHELL:
        subprocess.run(['bash', '-n'], input=commands, text=True, check=True)
