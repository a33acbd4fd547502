"""What goes to the hub, and what stays here: photos, class images, marked images, people without consent."""

import dataclasses
import json

import huggingface_hub
import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from dreambooth_jax.config import ConfigError, DataConfig, DreamBoothConfig, LoraConfig
from dreambooth_jax.data import provenance
from dreambooth_jax.data.fingerprints import Fingerprint, file_hash
from dreambooth_jax.data.images import ImageError
from dreambooth_jax.data.provenance import Facts
from dreambooth_jax.finetune import model_card, sharing
from dreambooth_jax.finetune.model_card import Export
from dreambooth_jax.generation.cascade import Cascade
from dreambooth_jax.training import inputs
from tests.support import loopback_hub, marked_files, smallest_pipelines

NAME = 'ana/rex'
BASE = 'black-forest-labs/FLUX.1-dev'
DATA = DataConfig(instance_dir='photos', instance_prompt='a sks dog', class_prompt='a dog')
CONFIG = DreamBoothConfig(model=BASE, data=DATA, lora=LoraConfig(rank=4))
PROMPTS = ('a sks dog', 'a sks dog, "snow": #1', 'a dog')


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with loopback_hub.in_this_process(monkeypatch, tmp_path) as hub:
        yield hub


def image(path, prompt, value=0, **options):
    """A generated image that says its prompt."""
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = Facts(prompt=prompt, steps=3, sampler='ddim', guidance_scale=2.0, seed=0) if prompt else None
    provenance.save(np.full((8, 8, 3), value, np.uint8), path, facts, **options)
    return path


def samples(workdir, stage='base', step=40, prompts=PROMPTS):
    """What SampleGrid leaves: the grid, and two images of each prompt."""
    image(workdir / 'samples' / stage / f'{step:06d}.png', '\n'.join(map(str, prompts)))
    folder = workdir / 'samples' / stage / f'{step:06d}'
    for index, prompt in enumerate(prompts):
        for number in range(2):
            image(folder / f'{index:03d}_{number:02d}.png', prompt, 10 * index + number)
    return folder


@pytest.fixture
def workdir(tmp_path):
    samples(tmp_path / 'run')
    return tmp_path / 'run'


@pytest.fixture
def export(workdir):
    """A run's export in a form; and the files of it."""

    def make(form, *files, **settings):
        config = dataclasses.replace(CONFIG, **settings)
        for path in files:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(path.name.encode())
        cascade = Cascade.load(smallest_pipelines.folder('pixels'))
        is_folder = form == 'diffusers'
        return Export(
            config=config, cascade=cascade, workdir=workdir, form=form, file=None if is_folder else files[0].name
        )

    return make


def push(export, written, steps=None, private=True):
    return sharing.push(export, written, NAME, steps={'base': 40} if steps is None else steps, private=private)


def test_adapters_lie_where_diffusers_looks_for_them_and_the_page_shows_examples(hub, export, workdir, tmp_path):
    names = ('dog.safetensors', 'dog.super_resolution.safetensors', 'sks-dog.safetensors', 'dog.md')
    written = [tmp_path / 'out' / name for name in names]
    one = export('lora_peft', *written)
    assert push(one, written).endswith('/ana/rex holds 6 files, read back and equal, 2 of them examples')
    there = hub.repositories[NAME]
    examples = {f'images/{index:03d}_00.png': prompt for index, prompt in enumerate(PROMPTS[:2])}
    folder = workdir / 'samples' / 'base' / '000040'
    assert there.files | {'README.md': b''} == {
        'README.md': b'',
        'pytorch_lora_weights.safetensors': b'dog.safetensors',
        'pytorch_lora_weights.super_resolution.safetensors': b'dog.super_resolution.safetensors',
        'sks-dog.safetensors': b'sks-dog.safetensors',
        **{file: (folder / file.removeprefix('images/')).read_bytes() for file in examples},
    }
    assert there.commits == [f'lora_peft by dreambooth-jax {provenance.VERSION}, steps: base 40']

    card = there.files['README.md'].decode()
    head = huggingface_hub.ModelCard(card).data.to_dict()  # as the hub's library reads it
    assert head == {
        'base_model': BASE,
        'base_model_relation': 'adapter',
        'library_name': 'diffusers',
        'pipeline_tag': 'text-to-image',
        'license': 'other',
        'license_name': 'flux.1-dev-non-commercial-license',
        'license_link': f'https://huggingface.co/{BASE}',
        'instance_prompt': 'a sks dog',
        'tags': ['text-to-image', 'diffusers', 'dreambooth', 'jax', 'lora', 'template:sd-lora'],
        'widget': [{'text': prompt, 'output': {'url': file}} for file, prompt in examples.items()],
    }
    assert '\n<Gallery />\n' in card and 'Samples of the training, at step 40.' in card
    assert "load_lora_weights('ana/rex', weight_name='pytorch_lora_weights.safetensors')" in card
    assert 'hf download ana/rex pytorch_lora_weights.safetensors --local-dir .\n' in card
    assert str(tmp_path) not in card


def test_a_folder_goes_as_it_is_with_a_card_of_its_own(hub, export, tmp_path):
    folder = tmp_path / 'out'
    files = [folder / name for name in ('README.md', 'model_index.json', 'unet/x.safetensors', 'tokenizer/merges.txt')]
    one = export('diffusers', *files, lora=LoraConfig())
    push(one, [folder])
    there = hub.repositories[NAME].files
    assert {name: data for name, data in there.items() if not name.startswith(('images/', 'README'))} == {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in files[1:]
    }
    head = huggingface_hub.ModelCard(there['README.md'].decode()).data.to_dict()
    assert head['base_model_relation'] == 'finetune' and 'lora' not in head['tags'] and len(head['widget']) == 2
    assert "from_pretrained('ana/rex')" in there['README.md'].decode()


@pytest.mark.parametrize('form', ['lora_kohya', 'lora_comfyui', 'single_file'])
def test_other_files_keep_their_names(hub, export, tmp_path, form):
    written = [tmp_path / 'dog.safetensors', tmp_path / 'dog.super_resolution.safetensors', tmp_path / 'dog.md']
    push(export(form, *written), written)
    there = hub.repositories[NAME].files
    assert {'dog.safetensors', 'dog.super_resolution.safetensors'} < there.keys() and 'dog.md' not in there
    card = there['README.md'].decode()
    single = "from_single_file('https://huggingface.co/ana/rex/blob/main/dog.safetensors')"
    assert (single if form == 'single_file' else "load_lora_weights('ana/rex', weight_name='dog.safetensors')") in card


@pytest.mark.parametrize('name', ['me.jpg', 'unet/me.png', '1.caption', 'notes'])
def test_a_folder_with_anything_else_in_it_is_not_pushed(hub, export, tmp_path, name):
    folder = tmp_path / 'out'
    one = export('diffusers', folder / 'model_index.json', folder / name)
    with pytest.raises(ConfigError) as caught:
        push(one, [folder])
    assert str(caught.value) == (
        f'{folder / name} is no part of the model, and nothing else is pushed; take it out of there'
    )
    assert not hub.repositories


def refused(export, tmp_path, path, reason):
    written = [tmp_path / 'dog.safetensors']
    with pytest.raises(ConfigError) as caught:
        push(export('lora_peft', *written), written)
    assert str(caught.value) == f'{path} {reason}; take it out of there'


def test_a_photo_among_the_samples_is_not_pushed(hub, export, workdir, tmp_path):
    path = workdir / 'samples' / 'base' / '000040' / '003_00.png'
    path.write_bytes(marked_files.image('PNG'))
    refused(export, tmp_path, path, 'does not say that a model has generated it, and photos are not pushed')
    image(path, None, source=provenance.PAINTED)
    refused(export, tmp_path, path, 'does not say that a model has generated it, and photos are not pushed')
    path.write_bytes(marked_files.image('JPEG'))
    with pytest.raises(ConfigError, match='003_00.png is no PNG file that can be read .*, so that it is not pushed$'):
        push(export('lora_peft', tmp_path / 'dog.safetensors'), [tmp_path / 'dog.safetensors'])
    assert not hub.repositories


def test_an_image_that_is_marked_do_not_train_is_not_pushed(hub, export, workdir, tmp_path):
    path = workdir / 'samples' / 'base' / '000040' / '003_00.png'
    namespace = 'http://iptc.org/std/Iptc4xmpExt/2008-02-29/'
    generated = f'<Iptc:DigitalSourceType>{provenance.GENERATED}</Iptc:DigitalSourceType>'
    packet = marked_files.xmp(marked_files.mining('DMI-PROHIBITED') + generated, attributes=f'xmlns:Iptc="{namespace}"')
    chunks = PngImagePlugin.PngInfo()
    chunks.add_itxt('XML:com.adobe.xmp', packet.decode())
    Image.new('RGB', (8, 8)).save(path, pnginfo=chunks)
    refused(
        export,
        tmp_path,
        path,
        'is marked "do not train" (IPTC: plus:DataMining is DMI-PROHIBITED), and such images are not pushed',
    )
    assert not hub.repositories


@pytest.mark.parametrize('kind', ['photos', 'class images'])
def test_what_the_run_was_trained_on_is_not_pushed(hub, export, workdir, tmp_path, kind):
    path = image(workdir / 'samples' / 'base' / '000040' / '003_00.png', 'a dog in a hat', 99)
    if kind == 'photos':
        listed = {'data.instance_dir': [Fingerprint('1.png', file_hash(path))]}
        (workdir / inputs.FILE).write_text(inputs.to_json(inputs.Inputs({}, listed)))
    else:
        (workdir / 'prior').mkdir()
        entry = {
            'prompt': 'a dog',
            'sha256': 'ab',
            'super_resolution': True,
            'super_resolution_sha256': file_hash(path),
        }
        (workdir / 'prior' / 'manifest.json').write_text(json.dumps({'images': {'0.png': entry}}))
    refused(export, tmp_path, path, f'is one of the {kind} that the run was trained on, and these are not pushed')
    assert not hub.repositories


def test_examples_are_of_the_last_stage_and_the_nearest_step(workdir):
    def step(**steps):
        return {one.path.parent.name for one in sharing.examples(CONFIG, workdir, steps)}

    samples(workdir, step=80)
    assert step(base=40) == {'000040'} and step(base=50) == {'000040'} and step(base=60) == {'000040'}
    assert step(base=70) == {'000080'} and step() == {'000080'}
    second = samples(workdir, 'super_resolution', 20)
    assert step(base=40, super_resolution=20) == {'000020'}
    assert all(one.path.parent == second for one in sharing.examples(CONFIG, workdir, {}))


def test_without_samples_or_prompts_the_card_says_less(workdir, export, hub, tmp_path):
    samples(workdir, prompts=(None, None), step=80)
    told = sharing.examples(CONFIG, workdir, {'base': 80})
    assert [one.prompt for one in told] == [None, None]
    shown = export('lora_peft', tmp_path / 'x').in_repository('a/b', 'x', told)
    assert 'widget: [{"text": "-",' in model_card.text(shown)
    samples(workdir, prompts=[f'a sks dog {number}' for number in range(20)], step=90)
    assert len(sharing.examples(CONFIG, workdir, {'base': 90})) == sharing.MOST_EXAMPLES
    for folder in ('000040', '000080', '000090'):
        for path in (workdir / 'samples' / 'base' / folder).iterdir():
            path.unlink()
        (workdir / 'samples' / 'base' / folder).rmdir()  # as a run of an older version leaves it: grids alone
    assert sharing.examples(CONFIG, workdir, {'base': 40}) == []
    push(export('lora_peft', tmp_path / 'x.safetensors'), [tmp_path / 'x.safetensors'])
    card = hub.repositories[NAME].files['README.md'].decode()
    assert 'widget' not in card and 'Gallery' not in card and len(hub.repositories[NAME].files) == 2


def test_models_of_people_are_pushed_with_consent_alone(hub, export, tmp_path):
    person = dataclasses.replace(DATA, instance_prompt='a sks woman', class_prompt='a woman')
    config = dataclasses.replace(CONFIG, data=person)
    with pytest.raises(ConfigError, match='names a person, but config.data.consent says nothing: set it to whose'):
        sharing.check(config, NAME, True)
    assert hub.asked == []
    agreed = dataclasses.replace(person, consent='Ana Lima, by letter of 2026-11-02')
    sharing.check(dataclasses.replace(CONFIG, data=agreed), NAME, True)
    push(export('lora_peft', tmp_path / 'x.safetensors', data=agreed), [tmp_path / 'x.safetensors'])
    assert '\n> Ana Lima, by letter of 2026-11-02\n' in hub.repositories[NAME].files['README.md'].decode()


def test_a_model_of_marked_photos_is_pushed_with_consent_alone(hub, tmp_path):
    folder = tmp_path / 'photos'
    folder.mkdir()
    (folder / '1.jpg').write_bytes(marked_files.jpeg_with_xmp(marked_files.xmp(marked_files.mining('DMI-PROHIBITED'))))
    data = dataclasses.replace(DATA, instance_dir=str(folder))
    with pytest.raises(ImageError, match='1.jpg is marked "do not train"'):
        sharing.check(dataclasses.replace(CONFIG, data=data), NAME, True)
    assert hub.asked == []
    agreed = dataclasses.replace(data, consent='the photographer, by mail')
    sharing.check(dataclasses.replace(CONFIG, data=agreed), NAME, True)


def there(hub, card, private=True):
    hub.repositories[NAME] = loopback_hub.Repository(private)
    if card is not None:
        hub.repositories[NAME].files['README.md'] = card.encode()


def said(config=CONFIG, private=True):
    with pytest.raises(ConfigError) as caught:
        sharing.check(config, NAME, private)
    return str(caught.value)


def test_a_repository_of_another_base_or_program_is_left_alone(hub, export, tmp_path):
    card = model_card.text(export('lora_peft', tmp_path / 'x'))
    there(hub, card)
    sharing.check(CONFIG, NAME, True)
    sharing.check(dataclasses.replace(CONFIG, model=BASE.lower()), NAME, True)
    assert said(dataclasses.replace(CONFIG, model='owner/other')) == (
        f'ana/rex on the hub holds a model whose base is {BASE}, but the base of this one is owner/other; give another '
        f'name with --push_to'
    )
    storybook = DreamBoothConfig(data=DataConfig(subject='dog', instance_prompt='a sks dog', class_prompt='a dog'))
    assert said(storybook) == (
        f'ana/rex on the hub holds a model whose base is {BASE}, but the base of this one is storybook; give another '
        f'name with --push_to'
    )
    there(hub, card.replace(f'base_model: "{BASE}"\n', ''))
    sharing.check(storybook, NAME, True)
    assert said() == (
        f'ana/rex on the hub holds a model whose base is one that is not of the hub, but the base of this one is '
        f'{BASE}; give another name with --push_to'
    )
    there(hub, f'---\nlicense: mit\nbase_model: {BASE}\n---\n# Mine\n')
    assert said() == (
        'ana/rex on the hub has a model card that this program has not written; give another name with --push_to'
    )
    there(hub, None)
    sharing.check(CONFIG, NAME, True)


def test_a_public_repository_is_not_taken_for_a_private_one(hub):
    there(hub, None, private=False)
    assert said() == (
        'ana/rex on the hub is public; make it private on its page first, or say with --nopush_private that everybody '
        'may see what is pushed'
    )
    sharing.check(CONFIG, NAME, False)
    there(hub, None)
    sharing.check(CONFIG, NAME, False)
