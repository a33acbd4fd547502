"""generate_prior from the command line."""

import pytest
from PIL import Image

from tests.support import smallest_pipelines

CONFIG = """
from dreambooth_jax.config import DreamBoothConfig, to_config_dict

def get_config():
    config = to_config_dict(DreamBoothConfig())
    config.model = {model!r}
    config.super_resolution_model = 'none'
    config.data.instance_dir = 'photos'
    config.data.instance_prompt = 'a sks dog'
    config.data.class_prompt = 'a dog'
    config.prior.num_images = 3
    config.prior.steps = 2
    config.prior.sampler = 'ddim'
    config.prior.guidance_scale = 1.0
    config.prior.batch_size = 4
    return config
"""


@pytest.fixture
def config(tmp_path):
    path = tmp_path / 'config.py'
    path.write_text(CONFIG.format(model=str(smallest_pipelines.folder('pixels'))))
    return f'--config={path}'


def test_class_images_are_generated_once_and_completed_later(program, config, tmp_path):
    workdir = tmp_path / 'run'
    ended = program('generate_prior', config, f'--workdir={workdir}')
    assert ended[:2] == (0, f"3 class images of 'a dog' in {workdir}/prior\n")
    names = [f'a_dog_0000{number}.png' for number in range(4)]
    assert sorted(path.name for path in (workdir / 'prior').iterdir()) == [*names[:3], 'manifest.json']
    before = (workdir / 'prior' / names[0]).stat().st_mtime_ns
    ended = program('generate_prior', config, f'--workdir={workdir}', '--config.prior.num_images=4')
    assert ended.code == 0 and ended.out.startswith('4 class images')
    assert (workdir / 'prior' / names[3]).is_file()
    assert (workdir / 'prior' / names[0]).stat().st_mtime_ns == before
    ended = program('generate_prior', config, f'--workdir={workdir}', '--config.seed=1')
    assert (ended.code, ended.error) == (
        1,
        f'prior.num_images is 3 but {workdir}/prior holds 4 made with seed 0 instead of 1; delete that folder or set '
        f'prior.dir.',
    )


def test_of_photos_of_ones_own_nothing_is_generated(program, config, tmp_path):
    (tmp_path / 'dogs').mkdir()
    Image.new('RGB', (20, 20)).save(tmp_path / 'dogs' / '1.png')
    ended = program('generate_prior', config, f'--workdir={tmp_path / "run"}', f'--config.prior.dir={tmp_path}/dogs')
    assert ended[:2] == (0, f"1 class images of 'a dog' in {tmp_path}/dogs, photos of your own: nothing is generated\n")
    assert [path.name for path in (tmp_path / 'dogs').iterdir()] == ['1.png']
    assert [path.name for path in (tmp_path / 'run').rglob('*.*')] == ['manifest.json']


def test_what_is_wrong_is_named(program, config, tmp_path):
    def said(*arguments):
        ended = program('generate_prior', *arguments)
        assert (ended.code, ended.out) == (1, '')
        return ended.error

    workdir = f'--workdir={tmp_path / "run"}'
    assert said(workdir) == '--config must be given; --help says what it is'
    assert said(config) == '--workdir must be given; --help says what it is'
    assert said(config, workdir, '--config.prior.weight=0') == (
        'config.prior.weight is 0, so this run needs no class images; set it above 0'
    )
    assert said(config, workdir, '--config.prior.kind=distillation') == (
        "config.prior.kind is 'distillation', so this run needs no class images; set it to 'images'"
    )
    assert said(config, workdir, '--config.base.steps=0') == (
        'no stage trains on class images: set config.base.steps, or config.super_resolution.steps and '
        'config.super_resolution.with_prior'
    )
    assert said(config, workdir, '--config.prior.num_images=0') == 'config.prior.num_images must be > 0, got 0'
    (tmp_path / 'run').touch()
    assert said(config, workdir) == f'{tmp_path}/run/prior: Not a directory'
    assert said('--config=nowhere.py', workdir) == (
        'the file given to --config=nowhere.py is not there; give the path of a config file, such as configs/dog.py'
    )
