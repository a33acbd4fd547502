"""The house's walls: imports only go down, files stay small and are named after what they are. Read from the source."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / 'dreambooth_jax'
PROGRAMS = 'programs'

# From the ground up. A room imports itself and what lies below; rooms of one floor do not know of each other.
FLOORS = (
    ('config', 'system'),
    ('diffusion', 'models', 'text', 'data', 'storybook', 'monitoring'),
    ('weights', 'datasets'),
    ('families',),
    ('losses', 'training'),
    ('generation',),
    ('evaluation', 'finetune'),
    ('web',),
    ('program',),  # how every program starts and ends
    (PROGRAMS,),
)
LEVEL = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
# What these do is given as plain arguments, so that it works in a notebook without a config.
WITHOUT_CONFIG = FLOORS[1] + FLOORS[2] + FLOORS[3]
# Only these may ask which family a model is of: by the name of a network or of a pipeline's class, or by its kind. In
# models/ a network names itself in its errors.
KNOW_FAMILIES = ('families', 'weights', 'models')
FAMILY = re.compile(
    r'unet|transformer|\w+Pipeline|UNet\w+|Autoencoder\w+|\w+Transformer\dDModel|CLIP\w+Model\w*|T5\w+Model|Qwen3\w+'
)
NOT_AT_RUN_TIME = ('torch', 'torchvision', 'diffusers', 'tensorflow')
HOMELESS = ('utils', 'util', 'helpers', 'helper', 'common', 'misc')
LONGEST_FILE, LONGEST_PROGRAM = 450, 150
MOST_PARAMETERS = 8
LARGEST_UNTESTED = 60

FILES = sorted(PACKAGE.rglob('*.py'))
OTHERS = sorted(path for folder in ('tests', 'configs', 'experiments') for path in (ROOT / folder).rglob('*.py'))


def name(path):
    return str(path.relative_to(ROOT))


def room(module):
    """The room of 'dreambooth_jax.a.b': 'a', and 'programs' for a module at the top that is no room of its own."""
    first = module.split('.')[1] if '.' in module else ''
    return first if first in LEVEL or (PACKAGE / first).is_dir() else PROGRAMS


def module_of(path):
    parts = path.relative_to(ROOT).with_suffix('').parts
    return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


def imports(path):
    """Every module that a file imports, at its top or inside a function, by full name; `from a import b` as a.b too."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                folder = module_of(path) if path.name == '__init__.py' else module_of(path).rpartition('.')[0]
                for _ in range(node.level - 1):
                    folder = folder.rpartition('.')[0]
                base = f'{folder}.{node.module}' if node.module else folder
            else:
                base = node.module
            # `from dreambooth_jax import program` names a module only together with what it imports.
            found += [f'{base}.{alias.name}' for alias in node.names] if base == 'dreambooth_jax' else [base]
    return found


def own(path):
    return [module for module in imports(path) if module.split('.')[0] == 'dreambooth_jax']


def wrong_imports(path):
    here = room(module_of(path))
    wrong = []
    for module in own(path):
        there = room(module)
        inside = here == there != PROGRAMS
        if not inside and LEVEL[there] >= LEVEL[here]:
            wrong.append(f'{name(path)} ({here}) imports {module} ({there})')
    return wrong


def test_every_room_has_a_floor():
    rooms = {path.name for path in PACKAGE.iterdir() if path.is_dir() and any(path.glob('*.py'))}
    assert rooms <= LEVEL.keys()


def test_imports_only_go_down():
    assert [wrong for path in FILES if path != PACKAGE / '__init__.py' for wrong in wrong_imports(path)] == []


def family_branches(path):
    """The lines on which a file names a network or class of one family, or asks whether a model works on latents."""
    tree = ast.parse(path.read_text())
    documented = (node for node in ast.walk(tree) if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef))
    docs = {id(node.body[0].value) for node in documented if node.body and isinstance(node.body[0], ast.Expr)}
    found = []
    for node in ast.walk(tree):
        text = isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs
        if text and FAMILY.fullmatch(node.value) or isinstance(node, ast.Attribute) and node.attr == 'is_latent':
            found.append(f'{name(path)}:{node.lineno}')
    return found


def test_nothing_but_families_and_weights_asks_which_family_a_model_is_of():
    others = [path for path in FILES if room(module_of(path)) not in KNOW_FAMILIES]
    assert [line for path in others for line in family_branches(path)] == []


@pytest.mark.parametrize(
    'line',
    [
        "x = {'unet': 1}",
        "y = kind == 'IFPipeline'",
        "z = 'LuminaPipeline'",
        "n = 'Qwen3ForCausalLM'",
        "a = 'AutoencoderKLFlux2'",
        'w = pipeline.is_latent',
    ],
)
def test_branches_on_a_family_are_seen(line, tmp_path, monkeypatch):
    monkeypatch.setattr('tests.test_floors.ROOT', tmp_path)
    path = tmp_path / 'new.py'
    path.write_text(f'"""unet"""\n{line}\n')
    assert family_branches(path) == ['new.py:2']


def one_family(path):
    """What a file imports of modules that are one family each: those that families/family.py makes its tuple of."""
    tree = ast.parse((PACKAGE / 'families' / 'family.py').read_text())
    each = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == 'dreambooth_jax.families'
        for alias in node.names
    }
    assert len(each) >= 8
    full = {f'dreambooth_jax.families.{module}' for module in each}
    found = set(imports(path)) & full
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == 'dreambooth_jax.families':
            found |= {alias.name for alias in node.names} & each
    return [f'{name(path)} imports {module}' for module in sorted(found)]


def test_nothing_but_families_imports_one_of_them():
    others = [path for path in FILES if room(module_of(path)) != 'families']
    assert [line for path in others for line in one_family(path)] == []


@pytest.mark.parametrize(
    'line', ['from dreambooth_jax.families import z_image', 'from dreambooth_jax.families.sdxl import FAMILY']
)
def test_an_import_of_one_family_is_seen(line, tmp_path, monkeypatch):
    monkeypatch.setattr('tests.test_floors.ROOT', tmp_path)
    path = tmp_path / 'new.py'
    path.write_text(f'{line}\nfrom dreambooth_jax.families.family import of_class\n')
    assert len(one_family(path)) == 1


def test_maths_networks_and_weights_know_no_settings():
    wrong = [
        f'{name(path)} imports {module}'
        for path in FILES
        if room(module_of(path)) in WITHOUT_CONFIG
        for module in own(path)
        if room(module) == 'config'
    ]
    assert wrong == []


def importers_of(packages):
    return [(name(path), module) for path in FILES for module in imports(path) if module.split('.')[0] in packages]


def test_neither_torch_nor_tensorflow_is_needed_at_run_time():
    assert importers_of(NOT_AT_RUN_TIME) == []


def test_package_imports_neither_tests_nor_experiments_nor_configs():
    assert importers_of(('tests', 'experiments', 'configs')) == []


def test_no_file_or_folder_is_named_after_nothing():
    assert [name(path) for path in FILES + OTHERS if set(path.with_suffix('').parts) & set(HOMELESS)] == []


def length(path):
    return len(path.read_text().splitlines())


def test_no_file_is_too_long():
    assert {name(path): length(path) for path in FILES + OTHERS if length(path) > LONGEST_FILE} == {}


def own_tests(path):
    """Where the tests of a module are looked for: tests/ mirrors the package, and has a folder for the programs."""
    folder = path.parent.relative_to(ROOT / 'dreambooth_jax')
    return ROOT / 'tests' / (folder if folder.parts else PROGRAMS) / f'test_{path.stem}.py'


def untested(paths):
    """The larger ones of these modules that have no test file of their own; an __init__.py only names what is there."""
    large = [path for path in paths if path.name != '__init__.py' and length(path) > LARGEST_UNTESTED]
    files = ((path, own_tests(path)) for path in large)
    return [name(path) for path, file in files if not file.is_file() or 'def test_' not in file.read_text()]


def test_every_module_has_a_test_file_of_its_own():
    assert untested(FILES) == []


@pytest.mark.parametrize('module, file', [('models/new.py', 'models/test_new.py'), ('new.py', 'programs/test_new.py')])
def test_a_module_without_tests_is_seen(module, file, tmp_path, monkeypatch):
    monkeypatch.setattr('tests.test_floors.ROOT', tmp_path)
    path, test = tmp_path / 'dreambooth_jax' / module, tmp_path / 'tests' / file
    for folder in (path.parent, test.parent):
        folder.mkdir(parents=True)
    path.write_text('\n' * 60)
    assert untested([path]) == []
    path.write_text('\n' * 61)
    assert untested([path]) == [f'dreambooth_jax/{module}']
    test.write_text('"""Nothing yet."""')
    assert untested([path]) == [f'dreambooth_jax/{module}']
    test.write_text('def test_something(): pass')
    assert untested([path]) == []


def test_programs_only_compose():
    programs = [path for path in PACKAGE.glob('[!_]*.py') if room(module_of(path)) == PROGRAMS]
    programs = [path for path in programs if path.stem != 'client']  # one file by its purpose, and no program
    assert {'train', 'pretrain'} <= {path.stem for path in programs}
    assert {name(path): length(path) for path in programs if length(path) > LONGEST_PROGRAM} == {}


def too_many_parameters(path):
    """The functions of a file that take more than MOST_PARAMETERS; *args and **kwargs are not counted."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            count = sum(parameter.arg not in ('self', 'cls') for parameter in every)
            if count > MOST_PARAMETERS:
                found.append(f'{name(path)}: {getattr(node, "name", "a lambda")} has {count}')
    return found


def test_no_function_outside_layers_has_many_parameters():
    """Where one has more, a dataclass is missing. Layers take what their checkpoint's configuration lists."""
    assert [many for path in FILES if room(module_of(path)) != 'models' for many in too_many_parameters(path)] == []


def test_too_many_parameters_are_seen(tmp_path, monkeypatch):
    monkeypatch.setattr('tests.test_floors.ROOT', tmp_path)
    path = tmp_path / 'new.py'
    path.write_text('def f(a, b, c, d, /, e, *more, f, g, h, **others): pass')
    assert too_many_parameters(path) == []
    path.write_text('class A:\n    def f(self, a, b, c, d, /, e, *more, f, g, h, i, **others): pass')
    assert too_many_parameters(path) == ['new.py: f has 9']


@pytest.mark.parametrize(
    'where, line, is_wrong',
    [
        ('models', 'from dreambooth_jax.losses.denoising import DenoisingLoss', True),  # up
        ('models', 'import dreambooth_jax.text.tokenize', True),  # sideways
        ('models', 'from dreambooth_jax.models import layers', False),
        ('losses', 'def late():\n    from dreambooth_jax.training import step', True),
        ('losses', 'from dreambooth_jax.data import pairs', False),
        ('families', 'from dreambooth_jax.weights import files', False),
        ('weights', 'from dreambooth_jax.families import sdxl', True),
        ('weights', 'from dreambooth_jax import train', True),
        ('weights', 'from ..models import unet', False),
        ('weights', 'from ..generation import cascade', True),
        ('', 'from dreambooth_jax import sample', True),  # a program from a program
        ('', 'from dreambooth_jax import program', False),
        ('', 'from dreambooth_jax.generation import cascade', False),
    ],
)
def test_walls_hold(where, line, is_wrong, tmp_path, monkeypatch):
    """These tests would see a wrong import."""
    monkeypatch.setattr('tests.test_floors.ROOT', tmp_path)
    path = tmp_path / 'dreambooth_jax' / where / 'new.py'
    path.parent.mkdir(parents=True)
    path.write_text(line)
    assert bool(wrong_imports(path)) == is_wrong
