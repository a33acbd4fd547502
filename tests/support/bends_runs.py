"""Bends of a run for the fuzz tests: each changes one thing in its settings, its paths or the folder of a begun run."""

import json
import shutil

from dreambooth_jax.config import DreamBoothConfig, schema
from tests.support.fuzz_world import NAMES, Expected, Seen, World, photo

LEAVES = sorted(schema._leaves(DreamBoothConfig, 'config'))
TEXTS = (
    '-1',
    '0',
    '1',
    '2',
    'x',
    '',
    'None',
    'nan',
    'inf',
    '1e-3',
    '1.5',
    'True',
    "('a',)",
    '(1, 2)',
    '[8, 12]',
    '犬',
    '{}',
    '(',
    '~',
)
RESUMED = 2  # steps of a run that is resumed after its first step


def accepted(world: World, seen: Seen) -> None:
    """Checks that the run came as far as reading photos and model."""
    assert seen.images is not None and seen.params is not None


def one_setting(world, rng):
    leaf = LEAVES[rng.integers(len(LEAVES))]
    text = TEXTS[rng.integers(len(TEXTS))]
    world.arguments.append(f'--{leaf}={text}')
    return Expected(None, (leaf.rpartition('.')[2], *([text] if text.strip() else [])), accepted)


def unknown_setting(world, rng):
    leaf = LEAVES[rng.integers(len(LEAVES))]
    index = int(rng.integers(8, len(leaf)))
    bent = [leaf[:index] + leaf[index + 1 :], f'{leaf}s', f'{leaf}.x', leaf.upper()][rng.integers(4)]
    world.arguments.append(f'--{bent}=1')
    return Expected(None, ('known setting', 'flag', 'config'), accepted)


def config_file(world, rng):
    path = world.here / 'config.py'
    text = path.read_text()
    path.write_text(
        [
            '',
            'def get_config(:',
            text + '\n1 / 0\n',
            text.replace('def get_config', 'def get_configuration'),
            text.replace('return config', 'return 3'),
            'import nothing_like_this\n' + text,
            text.replace('config.base.steps', 'config.base.stepps'),
            '\0' + text,
            text.replace('return config', 'return config["x"]'),
        ][rng.integers(9)]
    )
    return Expected(1, ('config',))


def flags(world, rng):
    world.arguments += [
        ['--nosuch'],
        ['photos'],
        ['--dry_run=maybe'],
        ['--config='],
        ['--config=nowhere.py'],
        ['--config=photos'],
        ['--workdir'],
        ['--', 'x'],
        ['--config.data.subjects=x'],
    ][rng.integers(9)]
    return Expected(1)


def workdir(world, rng):
    """Starts a run without training steps, which writes its settings and the model, in an unusual folder."""
    world.arguments = ['--config=config.py', '--config.base.steps=0']
    (world.here / 'other').mkdir()
    (world.here / 'other' / 'mine.txt').write_text('mine')
    (world.here / 'broken').symlink_to(world.here / 'nowhere' / 'at' / 'all')
    text, code = [
        ('', 1),
        (' ', 1),
        ('~/run', 0),
        ('config.py', 1),
        ('config.py/run', 1),
        ('x' * 300, 1),
        ('run/', 0),
        ('./run', 0),
        ('run/a/b', 0),
        ('other/new', 0),
        ('broken/run', None),
        ('run', 0),
        ('прогон', 0),
        (str(world.here / 'run'), 0),
        ('a run', 0),
        ('-run', 0),
    ][rng.integers(16)]
    world.arguments.append(f'--workdir={text}')
    home = (world.here / 'home', 'home')
    world.fresh = (*world.fresh, home[1], 'прогон', 'a run', '-run', 'nowhere')
    world.new = ('here/other/new',)

    def check(world, seen):
        index = home[0] / 'run' if text.startswith('~') else world.here / text
        assert (index / 'config.json').is_file() and (index / 'model' / 'model_index.json').is_file()

    return Expected(code, ('workdir', text or 'empty'), check)


def photos_path(world, rng):
    text, code = [
        ('photos/', 0),
        ('./photos', 0),
        (str(world.photos), 0),
        ('nowhere', 1),
        ('', 1),
        ('config.py', 1),
        ('~/photos', 0),
        ('photos/1.png', 1),
        ('here/../photos', None),
        ('x' * 5000, 1),
        ('photos\n', 1),
        (' ', 1),
    ][rng.integers(12)]
    (world.here / 'home').mkdir()
    shutil.copytree(world.photos, world.here / 'home' / 'photos')
    world.arguments.append(f'--config.data.instance_dir={text}')
    return Expected(code, ('instance_dir', 'folder', 'photos', 'config.py'), accepted)


def model_path(world, rng):
    text, code = [
        ('model/', 0),
        ('./model', 0),
        (str(world.model), 0),
        ('nowhere', 1),
        ('no/where', 1),
        ('', 1),
        ('config.py', 1),
        ('photos', 1),
        ('~/model', 1),
        ('model/unet', 1),
        ('a/b/c', 1),
        ('model.ckpt', 1),
        ('x.safetensors', 1),
        ('sks dog', 1),
    ][rng.integers(14)]
    world.arguments.append(f'--config.model={text}')
    return Expected(code, ('model', text), accepted)


# These bends change a run that has taken one step and is then resumed for a second step. begun() makes it.


def begun(world: World) -> None:
    """Makes the folder of a run after one step; one of its photos has a caption."""
    world.arguments = ['--config=config.py', '--workdir=run', f'--config.base.steps={RESUMED}']
    (world.photos / f'{NAMES[1]}.txt').write_text('a sks dog on a rug')
    world.begin()


def goes_on(world: World, seen: Seen) -> None:
    """Checks that the losses are those of an undisturbed run."""
    lines = [json.loads(line) for line in (world.run / 'metrics.jsonl').read_text().splitlines()]
    assert [line['loss'] for line in lines if line.get('stage', 'base') == 'base'] == world.undisturbed


def moved_photos(world, rng):
    begun(world)
    kind = rng.integers(3)
    if kind == 0:
        world.photos.rename(world.here / 'elsewhere')
        world.arguments.append('--config.data.instance_dir=elsewhere')
    elif kind == 1:
        world.arguments.append(f'--config.data.instance_dir={world.photos}')
    else:
        (world.photos / f'{NAMES[0]}.png').rename(world.photos / ['0.png', '9.png', '1.PNG'][rng.integers(3)])
    return Expected(0, check=goes_on)


def changed_photos(world, rng):
    begun(world)
    kind, name = rng.integers(5), f'{NAMES[0]}.png'
    if kind == 0:
        photo(7).save(world.photos / name)
    elif kind == 1:
        (world.photos / name).unlink()
    elif kind == 2:
        name = '4.png'
        photo(7).save(world.photos / name)
    elif kind == 3:
        name = f'{NAMES[1]}.txt'
        (world.photos / name).write_text('a sks cat')
    else:
        name = f'{NAMES[2]}.txt'
        (world.photos / name).write_text('a sks dog, asleep')
    return Expected(1, (name, name.replace('.txt', '.png')))


def other_settings(world, rng):
    begun(world)
    setting, code = [
        ('base.learning_rate=1e-2', 1),
        ('seed=4', 1),
        ('parallel.dtype=bfloat16', 1),
        ('objective.min_snr_gamma=5', 1),
        ('checkpoint.every=7', 0),
        ('samples.every=1', 0),
        ('prior.weight=0', 1),
        ('prior.batch_size=3', 0),
        ('optimizer.kind=lion', 1),
        ('data.random_flip=True', 1),
        ('parallel.steps_per_dispatch=1', 0),
        ('lora.rank=2', 1),
        ('data.instance_prompt=a sks cat', 1),
    ][rng.integers(13)]
    world.arguments.append(f'--config.{setting}')
    return Expected(code, (setting.partition('=')[0],), goes_on)


def damaged_run(world, rng):
    begun(world)
    files = {
        'config.json': 1,
        'prior/manifest.json': 1,
        'metrics.jsonl': None,
        'base/checkpoints/1/_CHECKPOINT_METADATA': None,
        'base/checkpoints/1/default/manifest.ocdbt': 1,
        'base/checkpoints/1/default/_METADATA': None,
    }
    name = sorted(files)[rng.integers(len(files))]
    path = world.run / name
    if rng.integers(2) and 'json' not in name:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: int(rng.integers(0, 20))])
    return Expected(files[name], ('config.json', 'manifest.json', 'checkpoint', 'metrics'), lambda world, seen: None)


def damaged_class_image(world, rng):
    begun(world)
    path = sorted((world.run / 'prior').glob('*.png'))[0]
    kind = rng.integers(3)
    if kind == 0:
        path.unlink()
        return Expected(0, check=goes_on)
    if kind == 1:
        path.write_bytes(path.read_bytes()[:40])
    else:
        photo(3, 8).save(path)
    return Expected(1, (path.name, 'prior'))


CHEAP = [one_setting, unknown_setting, config_file, flags, workdir, photos_path, model_path, one_setting]
DEAR = [moved_photos, changed_photos, other_settings, damaged_run, damaged_class_image]
BENDS = CHEAP + DEAR
