"""launch_tpu.sh against a stand-in for gcloud that keeps a VM in a folder: its state, its home folder, its Python.

The stand-in records its arguments and really runs the commands that are sent by ssh, so quoting is tested by what
arrives at the far end. No test calls the real gcloud.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / 'launch_tpu.sh'
HERE = ('--name=dog', '--zone=us-west4-a')
TRAIN = ('--', '--config=configs/dog.py')

GCLOUD = (ROOT / 'tests' / 'support' / 'fake_gcloud.py').read_text()

PYTHON3 = r"""
import os, pathlib, sys
if sys.argv[1:4] == ['-m', 'uv', 'venv']:
    python = pathlib.Path(sys.argv[-1], 'bin', 'python')
    python.parent.mkdir(parents=True)
    python.write_text('#!' + sys.executable + '\n' + pathlib.Path(os.environ['VM'], 'train.py').read_text())
    python.chmod(0o755)
else:
    assert sys.argv[1:3] == ['-m', 'pip'] or sys.argv[1:4] == ['-m', 'uv', 'pip'], sys.argv
"""

PROGRAM = r"""
import json, os, pathlib, sys, time
vm = pathlib.Path(os.environ['VM'])
(vm / 'train.json').write_text(json.dumps(sys.argv[1:]))
run = pathlib.Path('runs/dog')
run.mkdir(parents=True, exist_ok=True)
(vm / 'resumed').write_text(str((run / 'config.json').exists()))
(run / 'config.json').write_text('{}')
print('step 1 of 1')
"""


class World:
    """A folder with a small checkout, a stand-in VM, and a place where the user is."""

    def __init__(self, folder: Path):
        self.vm, self.checkout, self.cwd, self.bin = (folder / name for name in ('vm', 'checkout', 'cwd', 'bin'))
        for path in (self.vm, self.cwd, self.bin, self.checkout / 'configs', self.checkout / 'dreambooth_jax'):
            path.mkdir(parents=True)
        shutil.copy(SCRIPT, self.checkout)
        for name in ('setup.py', 'pyproject.toml', 'README.md', 'LICENSE', 'configs/dog.py', 'dreambooth_jax/train.py'):
            (self.checkout / name).write_text(name)
        for name, text in (('gcloud', GCLOUD), ('python3', PYTHON3)):
            (self.bin / name).write_text(f'#!{sys.executable}\n{text}')
            (self.bin / name).chmod(0o755)
        self.program()

    def program(self, more: str = '') -> None:
        """Sets what training does on the VM."""
        (self.vm / 'train.py').write_text(PROGRAM + more)

    def stand(self, state: str = 'READY', kind: str = 'v5litepod-8') -> None:
        """The VM is there already."""
        (self.vm / 'state').write_text(f'{state}\t{kind}')
        (self.vm / 'home').mkdir()

    def launch(self, *arguments: str, path: str | None = None) -> subprocess.CompletedProcess:
        environment = os.environ | {'PATH': path or f'{self.bin}:{os.environ["PATH"]}', 'VM': str(self.vm)}
        return subprocess.run(
            [shutil.which('bash'), str(self.checkout / 'launch_tpu.sh'), *arguments],
            cwd=self.cwd,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            stdin=subprocess.DEVNULL,
        )

    @property
    def calls(self) -> list[list[str]]:
        """Arguments of every gcloud command, after compute tpus tpu-vm."""
        path = self.vm / 'calls.jsonl'
        return [json.loads(line)[3:] for line in path.read_text().splitlines()] if path.exists() else []

    @property
    def verbs(self) -> list[str]:
        return [call[0] for call in self.calls]

    @property
    def is_standing(self) -> bool:
        return (self.vm / 'state').exists()

    @property
    def train_arguments(self) -> list[str]:
        return json.loads((self.vm / 'train.json').read_text())


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def sentences(result) -> list[str]:
    """What the script itself said, without the commands that it ran."""
    return [line for line in result.stderr.splitlines() if line.startswith('launch_tpu.sh: ')]


def test_a_new_vm_is_made_and_the_run_comes_home(world):
    result = world.launch(*HERE, *TRAIN)
    assert result.returncode == 0, result.stderr
    assert world.verbs == ['describe', 'create', 'scp', 'ssh', 'ssh', 'ssh', 'scp']
    assert world.calls[1] == [
        'create',
        'dog',
        '--accelerator-type=v5litepod-8',
        '--version=v2-alpha-tpuv5-lite',
        '--zone=us-west4-a',
        '--quiet',
    ]
    assert world.train_arguments == ['-m', 'dreambooth_jax.train', '--workdir=runs/dog', '--distributed', *TRAIN[1:]]
    assert (world.cwd / 'runs/dog/config.json').exists()
    assert (world.cwd / 'runs/dog/launch_tpu.log').read_text() == 'step 1 of 1\n'
    assert not list((world.cwd / 'runs').glob('.*'))
    assert 'step 1 of 1' in result.stdout


def test_the_code_is_installed_on_every_worker(world):
    world.launch(*HERE, *TRAIN)
    home = world.vm / 'home/dreambooth'
    for name in ('setup.py', 'configs/dog.py', 'dreambooth_jax/train.py'):
        assert (home / name).read_text() == name
    copy, install, train = world.calls[2:5]
    assert all('--worker=all' in call for call in (copy, install, train))
    assert "-e '.[tpu]'" in install[3]


def test_a_standing_vm_is_reused_and_code_that_is_gone_is_gone_there(world):
    world.stand()
    old = world.vm / 'home/dreambooth/dreambooth_jax/old.py'
    old.parent.mkdir(parents=True)
    old.touch()
    assert world.launch(*HERE, *TRAIN).returncode == 0
    assert 'create' not in world.verbs
    assert not old.exists()


def test_a_stopped_vm_is_started(world):
    world.stand('STOPPED')
    assert world.launch(*HERE, *TRAIN).returncode == 0
    assert world.verbs[:2] == ['describe', 'start']


def test_a_preempted_vm_is_made_anew_and_the_run_goes_on_from_what_is_here(world):
    world.stand('PREEMPTED')
    (world.cwd / 'runs/dog').mkdir(parents=True)
    (world.cwd / 'runs/dog/config.json').write_text('{}')
    result = world.launch(*HERE, '--spot', *TRAIN)
    assert result.returncode == 0, result.stderr
    assert world.verbs == ['describe', 'delete', 'create', 'scp', 'ssh', 'scp', 'ssh', 'ssh', 'scp']
    assert '--spot' in world.calls[2]
    assert (world.vm / 'resumed').read_text() == 'True'


def test_a_run_that_is_newer_on_a_standing_vm_is_not_overwritten(world):
    world.stand()
    (world.cwd / 'runs/dog').mkdir(parents=True)
    (world.cwd / 'runs/dog/config.json').write_text('old')
    world.launch(*HERE, *TRAIN)
    assert (world.vm / 'resumed').read_text() == 'False'


def test_a_preemption_while_training_is_named(world):
    world.program("(vm / 'state').write_text('PREEMPTED'); sys.exit(255)")
    result = world.launch(*HERE, *TRAIN)
    assert result.returncode == 1
    assert sentences(result)[-1] == (
        'launch_tpu.sh: dog was preempted; give the same command again to go on from what runs/dog holds'
    )


HOSTILE = [
    'a sks dog',
    "it's",
    'say "woof"',
    '$HOME',
    '`date`',
    '$(date)',
    'a; false',
    '*',
    'back\\slash',
    'two\nlines',
    'ä☃',
    '',
    '-- ',
    '#no',
    '~',
    '!',
    '&& false',
    '>out',
    '{a,b}',
    '%s',
]


def test_arguments_arrive_as_they_were_given(world):
    arguments = [*TRAIN[1:], *HOSTILE, *(f'--config.data.instance_prompt={text}' for text in HOSTILE)]
    assert world.launch(*HERE, '--', *arguments).returncode == 0
    assert world.train_arguments[4:] == arguments


def test_the_dry_run_prints_the_commands_that_would_run_and_runs_none(world):
    arguments = (*HERE, '--project=my-project', '--spot', '--delete', *TRAIN, *HOSTILE)
    dry = world.launch('--dry_run', *arguments)
    assert dry.returncode == 0, dry.stderr
    assert world.calls == [] and not list(world.cwd.iterdir())
    world.launch(*arguments)
    real = world.calls
    (world.vm / 'calls.jsonl').unlink()
    (world.bin / 'gcloud').write_text(f'#!{sys.executable}\n' + GCLOUD.partition('assert ')[0])  # records only
    lines = [line for line in dry.stdout.splitlines() if line.startswith('gcloud ')]
    subprocess.run(
        ['bash', '-c', '\n'.join(lines)],
        env=os.environ | {'PATH': f'{world.bin}:{os.environ["PATH"]}', 'VM': str(world.vm)},
        check=True,
    )

    def named(calls):
        return [[re.sub(r'^.*/dreambooth\.\w+(\.gz)?$', 'ARCHIVE', word) for word in call] for call in calls]

    resume = ['scp', '--recurse', 'runs/dog', 'dog:dreambooth/runs', '--worker=all']  # only printed: no run is there
    assert named(call for call in world.calls if call[:5] != resume) == named(real)
    assert len(world.calls) == len(real) + 1


def test_every_gcloud_command_names_zone_and_project_and_asks_nothing(world):
    world.launch(*HERE, '--project=my-project', '--delete', *TRAIN)
    for call in world.calls:
        assert '--zone=us-west4-a' in call and '--project=my-project' in call
        assert '--quiet' in call or call[0] == 'describe'


@pytest.mark.parametrize(
    ('kind', 'image'),
    [
        ('v5litepod-8', 'v2-alpha-tpuv5-lite'),
        ('v5p-8', 'v2-alpha-tpuv5'),
        ('v6e-8', 'v2-alpha-tpuv6e'),
        ('v4-8', 'tpu-ubuntu2204-base'),
    ],
)
def test_the_image_follows_from_the_type(world, kind, image):
    result = world.launch(*HERE, '--type', kind, '--dry_run', *TRAIN)
    assert f'--accelerator-type={kind} --version={image} ' in result.stdout


def test_a_given_image_wins(world):
    result = world.launch(*HERE, '--type=new9-8', '--version=my-image', '--dry_run', *TRAIN)
    assert '--accelerator-type=new9-8 --version=my-image ' in result.stdout


def test_uploaded_folders_lie_beside_the_code(world):
    photos = world.cwd / 'images of him' / 'my photos'
    photos.mkdir(parents=True)
    (photos / 'a.jpg').write_text('image')
    result = world.launch(*HERE, '--upload=images of him/my photos/', *TRAIN)
    assert result.returncode == 0, result.stderr
    assert (world.vm / 'home/dreambooth/my photos/a.jpg').read_text() == 'image'


def test_several_hosts_share_a_folder_for_runs(world):
    shared = world.vm / 'shared'
    arguments = (*HERE, '--type=v5litepod-16', f'--runs={shared}', *TRAIN)
    missing = world.launch(*arguments)
    assert missing.returncode == 1 and f'{shared} is not there; mount it on every worker' in missing.stdout
    (shared / 'dog').mkdir(parents=True)
    world.program(f"pathlib.Path({str(shared)!r}, 'dog', 'config.json').write_text('shared')")
    (world.cwd / 'runs/dog').mkdir(parents=True)
    (world.cwd / 'runs/dog/config.json').write_text('old')
    assert world.launch(*arguments).returncode == 0
    assert f'--workdir={shared}/dog' in world.train_arguments
    assert (world.cwd / 'runs/dog/config.json').read_text() == 'shared'


def test_a_config_may_lie_in_an_uploaded_folder(world):
    (world.cwd / 'mine').mkdir()
    (world.cwd / 'mine/cat.py').touch()
    assert world.launch(*HERE, '--upload=mine', '--', '--config=mine/cat.py:storybook').returncode == 0
    assert (world.vm / 'home/dreambooth/mine/cat.py').exists()


def test_the_vm_is_deleted_after_the_run_came_home(world):
    result = world.launch(*HERE, '--delete', *TRAIN)
    assert result.returncode == 0
    assert world.verbs[-2:] == ['scp', 'delete'] and not world.is_standing
    assert 'costs money' not in result.stderr


def test_a_vm_that_stays_is_said_to_cost_money(world):
    result = world.launch(*HERE, '--project=my-project', *TRAIN)
    assert world.is_standing
    assert sentences(result)[-1] == (
        'launch_tpu.sh: dog is still there and costs money; delete it with: ./launch_tpu.sh --name=dog '
        '--zone=us-west4-a --project=my-project --delete'
    )


def test_delete_alone_only_deletes(world):
    world.stand()
    assert world.launch(*HERE, '--delete').returncode == 0
    assert world.verbs == ['describe', 'delete'] and not world.is_standing


def test_delete_of_no_vm_says_so(world):
    result = world.launch(*HERE, '--delete')
    assert result.returncode == 0
    assert sentences(result) == ['launch_tpu.sh: dog is not there; nothing to delete']


@pytest.mark.parametrize('delete', [True, False])
def test_failed_training_is_told_after_its_run_came_home(world, delete):
    world.program("sys.exit('the loss is nan')")
    result = world.launch(*HERE, *(['--delete'] if delete else []), *TRAIN)
    assert result.returncode == 1
    assert (
        'launch_tpu.sh: training failed on dog; its last words stand above and in runs/dog/launch_tpu.log'
        in sentences(result)
    )
    assert 'the loss is nan' in (world.cwd / 'runs/dog/launch_tpu.log').read_text()
    assert world.is_standing != delete


def test_a_vm_whose_run_cannot_be_copied_is_kept(world):
    world.program("(vm / 'scp_fails').write_text('broken pipe')")
    (world.cwd / 'runs/dog').mkdir(parents=True)
    (world.cwd / 'runs/dog/kept').touch()
    result = world.launch(*HERE, '--delete', *TRAIN)
    assert result.returncode == 1 and world.is_standing
    assert [path.name for path in (world.cwd / 'runs/dog').iterdir()] == ['kept']
    assert not list((world.cwd / 'runs').glob('.*'))
    assert 'costs money' in result.stderr


@pytest.mark.parametrize(
    ('verb', 'sentence'),
    [
        ('create', 'gcloud could not make dog (its reason stands above); another --zone or --type may have room or'),
        ('scp', 'the code could not be copied to dog; types of several hosts need: ssh-add '),
        ('ssh', 'the package could not be installed on dog (the reason stands above)'),
        ('describe', 'gcloud cannot look up dog: ERROR: permission denied'),
    ],
)
def test_a_command_of_gcloud_that_fails_is_one_sentence(world, verb, sentence):
    (world.vm / f'{verb}_fails').write_text('ERROR: permission denied')
    result = world.launch(*HERE, *TRAIN)
    assert result.returncode == 1
    assert any(line.startswith(f'launch_tpu.sh: {sentence}') for line in sentences(result))
    assert world.verbs[-1] == verb


def test_a_vm_that_is_not_ready_is_left_alone(world):
    world.stand('REPAIRING')
    result = world.launch(*HERE, *TRAIN)
    assert sentences(result) == [
        'launch_tpu.sh: dog is REPAIRING; wait until it is READY, or delete it with --delete, then run this again'
    ]
    assert world.verbs == ['describe']


def test_a_vm_of_another_type_is_left_alone(world):
    world.stand(kind='v4-8')
    result = world.launch(*HERE, *TRAIN)
    assert sentences(result) == [
        'launch_tpu.sh: dog is there as v4-8 but --type is v5litepod-8; give another --name, --type=v4-8, or --delete '
        'it first'
    ]
    assert world.verbs == ['describe']


@pytest.mark.parametrize(
    ('arguments', 'sentence'),
    [
        (HERE[1:] + TRAIN, '--name is missing; name the VM, for example --name=dog'),
        (HERE[:1] + TRAIN, '--zone is missing; name the zone of the TPU, for example --zone=us-west4-a'),
        (('--name=Dog 1', HERE[1], *TRAIN), "--name is 'Dog 1' but must be lower-case letters, digits and dashes, and"),
        (HERE + ('--zone=--help', *TRAIN), "--zone is '--help' but must look like us-west4-a"),
        (HERE + ('--type=big', *TRAIN), "--type is 'big' but must look like v5litepod-8"),
        (HERE + ('--type=new9-8', *TRAIN), 'no runtime image is known for --type=new9-8; give one with --version, of'),
        (HERE + ('--runs=shared', *TRAIN), "--runs is 'shared' but must be a full path, such as /mnt/shared/runs"),
        (HERE + ('--type=v6e-16', *TRAIN), "--type=v6e-16 has several hosts, which must share the run's folder; mount"),
        (HERE + ('--sync=often', *TRAIN), "--sync is 'often' but must be a whole number of seconds"),
        (HERE + ('--workdir=a b', *TRAIN), "--workdir is 'a b' but its last part must be letters, digits, dots and"),
        (HERE + ('--upload=photos', *TRAIN), "--upload is 'photos' but there is no such folder"),
        (HERE + ('--colour=red', *TRAIN), 'there is no option --colour; --help lists them, and arguments of the'),
        (HERE + ('--spot=yes', *TRAIN), 'there is no option --spot'),
        (HERE + ('--name',), '--name needs a value, or is no option; --help lists them'),
        (HERE + ('dog', *TRAIN), "unexpected argument 'dog'; arguments of the training go after --"),
        (HERE, 'nothing to do; give the training its arguments, for example -- --config=configs/dog.py, or --delete'),
        (HERE + ('--', '--config.seed=1'), '--config is missing after --; for example -- --config=configs/dog.py'),
        (HERE + ('--', '--config', 'configs/dog.py'), 'write --config=FILE after --, with the equals sign'),
        (HERE + ('--', '--config=configs/cow.py'), "--config is 'configs/cow.py' but "),
        (HERE + ('--', '--config=/tmp/dog.py'), "--config is '/tmp/dog.py' but must be a file of configs/ or of a"),
        (HERE + (*TRAIN, '--workdir=x'), '--workdir goes before --, where it names the folder on this machine'),
    ],
)
def test_a_wrong_argument_is_one_sentence_before_anything_is_made(world, arguments, sentence):
    result = world.launch(*arguments)
    assert result.returncode == 1 and world.calls == []
    assert result.stderr.startswith(f'launch_tpu.sh: {sentence}') and result.stderr.count('\n') == 1


def test_a_missing_gcloud_is_one_sentence(world):
    for tool in ('dirname', 'cat'):
        (world.vm / tool).symlink_to(shutil.which(tool))
    result = world.launch(*HERE, *TRAIN, path=str(world.vm))
    assert result.stderr == (
        'launch_tpu.sh: the gcloud command is not installed; install the Google Cloud CLI, then run: '
        'gcloud auth login\n'
    )


def test_the_help_names_every_option(world):
    result = world.launch('--help')
    assert result.returncode == 0 and result.stderr == ''
    options = set(re.findall(r'^    (--[a-z_]+)\b.*\)', SCRIPT.read_text(), re.MULTILINE)) - {'--config'}
    assert len(options) == 14
    assert not {option for option in options if not re.search(rf'^  {option}\b', result.stdout, re.MULTILINE)}


@pytest.mark.parametrize('name', ['launch_tpu.sh', '.ci/run'])
def test_shellcheck_finds_nothing(name):
    shellcheck = shutil.which('shellcheck') or shutil.which('shellcheck', path=str(Path(sys.executable).parent))
    if shellcheck is None:
        pytest.skip('shellcheck is not installed')
    result = subprocess.run([shellcheck, str(ROOT / name)], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
