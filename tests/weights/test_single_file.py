"""Single files of the original layout: diffusers opens ours, round trips are exact, one sentence for what is wrong."""

import datetime
import hashlib
import logging
import random

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import torch

from dreambooth_jax.families.family import FAMILIES
from dreambooth_jax.families.originals import ORIGINALS
from dreambooth_jax.weights import files, original_layout, single_file
from dreambooth_jax.weights.errors import WeightsError
from tests.support import tiny_stable_diffusion as tiny
from tests.support.layouts import LAYOUTS


def configs(family, prediction_type='epsilon'):
    betas = {'beta_start': 0.0001, 'beta_end': 0.02} if family == 'upscaler' else {}
    return {**tiny.CONFIGS[family], 'scheduler': {**tiny.scheduler(prediction_type), **betas}}


def same(ours, theirs):
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not np.array_equal(ours[name], theirs[name])] == []


@pytest.fixture(scope='module', params=tiny.FAMILIES)
def family(request):
    return request.param


@pytest.fixture(scope='module')
def written(family, tmp_path_factory):
    path = tmp_path_factory.mktemp(family) / 'model.safetensors'
    assert single_file.write_single_file(path, tiny.components(family), configs(family), layouts=ORIGINALS) == path
    return path


def test_diffusers_opens_the_file_as_the_pipeline_that_was_written(family, written, tmp_path, caplog, capfd):
    folder = tmp_path / 'pipeline'
    tiny.pipeline(family).save_pretrained(folder)
    for weights in folder.rglob('*.safetensors'):
        weights.unlink()  # only configurations may come from there
    with caplog.at_level(logging.WARNING):
        found = tiny.PIPELINES[family].from_single_file(
            written,
            config=str(folder),
            local_files_only=True,
            tokenizer=None,
            **({'tokenizer_2': None} if family == 'sdxl' else {}),
        )
    said = caplog.text + capfd.readouterr().err
    assert [line for line in said.splitlines() if 'not used' in line or 'newly' in line or 'missing' in line] == []
    for component, network in tiny.networks(family).items():
        read = dict(getattr(found, component).named_parameters())
        assert read.keys() == dict(network.named_parameters()).keys()
        for name, value in network.named_parameters():
            assert torch.equal(read[name], value), name


# What cannot be derived and has no part in what a network computes.
NOT_DERIVED = {'text_encoder': ('projection_dim',)}


def test_the_file_is_read_back_with_the_configurations_that_fit(family, written):
    found = single_file.read_single_file(written, families=FAMILIES)
    assert found.layout is LAYOUTS[family]
    assert found.configs['scheduler']['prediction_type'] == 'epsilon'
    assert found.components.keys() == tiny.components(family).keys()
    for component, tensors in tiny.components(family).items():
        same(found.components[component], tensors)
        expected = {k: v for k, v in tiny.CONFIGS[family][component].items() if k not in NOT_DERIVED.get(component, ())}
        assert {key: found.configs[component][key] for key in expected} == expected


def test_header_says_what_the_file_is(family, written):
    metadata = files.read_header(written).metadata
    names = {
        'sd1': 'stable-diffusion-v1',
        'sd2': 'stable-diffusion-v2-512',
        'sdxl': 'stable-diffusion-xl-v1-base',
        'upscaler': 'stable-diffusion-x4-upscaler',
    }
    content = written.read_bytes()
    after_header = 8 + int.from_bytes(content[:8], 'little')
    made = datetime.datetime.fromisoformat(metadata.pop('modelspec.date'))
    assert abs(datetime.datetime.now(datetime.UTC) - made) < datetime.timedelta(hours=1)
    assert metadata == {
        'format': 'pt',
        'modelspec.sai_model_spec': '1.0.1',
        'modelspec.architecture': names[family],
        'modelspec.implementation': 'https://github.com/Stability-AI/generative-models',
        'modelspec.title': 'model',
        'modelspec.resolution': '32x32',
        'modelspec.prediction_type': 'epsilon',
        'modelspec.hash_sha256': '0x' + hashlib.sha256(content[after_header:]).hexdigest(),
    }


@pytest.mark.parametrize('dtype', ['float16', 'bfloat16'])
def test_half_precision_and_more_metadata(dtype, tmp_path):
    path = tmp_path / 'half.safetensors'
    more = {'modelspec.title': 'My dog', 'modelspec.trigger_phrase': 'sks', 'license': 'x'}
    single_file.write_single_file(
        path, tiny.components('sd1'), configs('sd1'), dtype=dtype, metadata=more, layouts=ORIGINALS
    )
    found = single_file.read_single_file(path, families=FAMILIES)
    assert more.items() <= found.metadata.items()
    content = path.read_bytes()
    data = content[8 + int.from_bytes(content[:8], 'little') :]
    assert found.metadata['modelspec.hash_sha256'] == '0x' + hashlib.sha256(data).hexdigest()
    stored = {'float16': np.float16, 'bfloat16': ml_dtypes.bfloat16}[dtype]
    for component, tensors in tiny.components('sd1').items():
        same(found.components[component], {name: value.astype(stored).astype('f') for name, value in tensors.items()})


def test_v_prediction_is_told(tmp_path):
    """In the metadata, and for SDXL in the marker tensors too, without which ComfyUI samples it as epsilon."""
    for family, markers in (('sd2', set()), ('sdxl', {'v_pred', 'ztsnr'})):
        path, given = tmp_path / f'{family}.safetensors', configs(family, 'v_prediction')
        given['scheduler']['rescale_betas_zero_snr'] = family == 'sdxl'
        single_file.write_single_file(path, tiny.components(family), given, layouts=ORIGINALS)
        assert {'v_pred', 'ztsnr'} & files.read_header(path).shapes.keys() == markers
        scheduler = single_file.read_single_file(path, families=FAMILIES).configs['scheduler']
        assert scheduler['prediction_type'] == 'v_prediction'
        assert ('rescale_betas_zero_snr' in scheduler) == (family == 'sdxl')


def bare(path, family):
    """A file as the original repositories wrote them: without metadata."""
    path.parent.mkdir(parents=True, exist_ok=True)
    safetensors.numpy.save_file(
        original_layout.to_original(tiny.components(family), tiny.CONFIGS[family], layout=LAYOUTS[family]), path
    )
    return path


def test_an_sd2_file_that_does_not_say_what_it_predicts_is_refused(tmp_path):
    path = bare(tmp_path / 'mine.safetensors', 'sd2')
    with pytest.raises(WeightsError) as error:
        single_file.read_single_file(path, families=FAMILIES)
    assert str(error.value) == (
        f'{path} is a Stable Diffusion 2.x model and does not say what it predicts; give prediction_type (setting and '
        "flag model_prediction_type), 'epsilon' for those made from 2.0-base or 2.1-base (512 pixels), 'v_prediction' "
        'for 2.0 or 2.1 (768).'
    )
    found = single_file.read_single_file(path, prediction_type='v_prediction', families=FAMILIES)
    assert found.configs['scheduler']['prediction_type'] == 'v_prediction'
    for name, expected in (('v2-1_512-ema-pruned.fp16', 'epsilon'), ('768-v-ema', 'v_prediction')):
        found = single_file.read_single_file(path.rename(tmp_path / f'{name}.safetensors'), families=FAMILIES)
        path = tmp_path / f'{name}.safetensors'
        assert found.configs['scheduler']['prediction_type'] == expected


def test_bare_files_of_other_families_predict_what_the_published_models_do(tmp_path):
    for family, expected in (('sd1', 'epsilon'), ('sdxl', 'epsilon'), ('upscaler', 'v_prediction')):
        found = single_file.read_single_file(bare(tmp_path / f'{family}.safetensors', family), families=FAMILIES)
        assert found.configs['scheduler']['prediction_type'] == expected
        # The published resolution, as nothing else is said; the tiny VAEs reduce by 4.
        assert found.configs['unet']['sample_size'] == {'sdxl': 256}.get(family, 128)


def test_known_configuration_comes_before_what_is_derived(tmp_path):
    known = {'unet': {'attention_head_dim': 4}, 'scheduler': {'timestep_spacing': 'trailing'}}
    found = single_file.read_single_file(bare(tmp_path / 'x.safetensors', 'sd1'), configs=known, families=FAMILIES)
    assert found.configs['unet']['attention_head_dim'] == 4
    assert found.configs['scheduler']['timestep_spacing'] == 'trailing'
    assert found.configs['unet']['block_out_channels'] == tiny.UNET['block_out_channels']


def test_clip_without_its_outer_name_is_read(tmp_path):
    tensors = original_layout.to_original(tiny.components('sd1'), tiny.CONFIGS['sd1'], layout=LAYOUTS['sd1'])
    path = tmp_path / 'x.safetensors'
    outer = 'cond_stage_model.transformer.text_model.'
    safetensors.numpy.save_file({name.replace(outer, outer[:-11]): value for name, value in tensors.items()}, path)
    same(
        single_file.read_single_file(path, families=FAMILIES).components['text_encoder'],
        tiny.components('sd1')['text_encoder'],
    )


BENDS = {
    'flat': lambda value: value.reshape(-1),
    'deeper': lambda value: value[..., None],
    'longer': lambda value: np.concatenate([value, value[:1]]),
    'empty': lambda value: value[:0],
}


@pytest.mark.parametrize(
    ('family', 'count'),
    [('sd2', 6), *(pytest.param(name, 60, marks=pytest.mark.slow) for name in ('sd1', 'sd2', 'sdxl', 'upscaler'))],
)
def test_a_tensor_of_another_shape_is_an_error_for_people(family, count, tmp_path):
    original = original_layout.to_original(tiny.components(family), configs(family), layout=LAYOUTS[family])
    path, rng, errors = tmp_path / 'x.safetensors', random.Random(0), 0
    # Those that sizes are taken from, and any.
    told = [name for name in original if name.endswith(('s.0.0.weight', 'in_proj_weight', 'embedding', 'to_k.weight'))]
    for case in range(count):
        name = rng.choice(told if case % 2 else sorted(original))
        bend = rng.choice(sorted(BENDS))
        bent = {**original, name: np.ascontiguousarray(BENDS[bend](original[name]))}
        safetensors.numpy.save_file(bent, path)
        try:
            single_file.read_pipeline(path, prediction_type='epsilon', tokenizer_dir=tmp_path, families=FAMILIES)
        except WeightsError as error:
            first = str(error).splitlines()[0]
            assert str(path) in first or 'tokenizer_dir' in first, (name, bend)
            errors += 'tokenizer_dir' not in first  # which comes last: all that is before was right
    assert errors > count // 2


@pytest.mark.parametrize('name', ['model.ckpt', 'model.bin'])
def test_pickled_files_are_refused_unopened(name, tmp_path):
    (tmp_path / name).write_bytes(b'not even a pickle')
    with pytest.raises(WeightsError, match=f'{name} is a pickled checkpoint.*convert it to safetensors'):
        single_file.read_single_file(tmp_path / name, families=FAMILIES)


def test_what_cannot_be_written_is_one_sentence_and_writes_nothing(tmp_path):
    parts, given = tiny.components('sd1'), configs('sd1')
    path = tmp_path / 'x.safetensors'

    def fails(sentence, path=path, parts=parts, given=given, **options):
        with pytest.raises(WeightsError) as error:
            single_file.write_single_file(path, parts, given, **options, layouts=ORIGINALS)
        assert str(error.value).splitlines()[0] == sentence
        assert list(tmp_path.iterdir()) == []

    fails(f'{tmp_path}/x.ckpt is no name of a single file; it must end in .safetensors.', path=tmp_path / 'x.ckpt')
    fails(
        'configs holds no scheduler, which says what the UNet predicts; give its configuration too.',
        given=tiny.CONFIGS['sd1'],
    )
    fails(
        'components are text_encoder, unet but a single file of Stable Diffusion 1.x holds text_encoder, unet, vae; '
        'give exactly these.',
        parts={part: parts[part] for part in ('unet', 'text_encoder')},
    )
    fails("dtype is 'int8'; weights can be stored as one of ('float32', 'float16', 'bfloat16').", dtype='int8')
    fails(
        'this metadata does not follow the model metadata standard 1.0.1:',
        metadata={'modelspec.resolution': 'large'},
    )


def test_a_damaged_file_is_one_sentence(tmp_path):
    path = bare(tmp_path / 'x.safetensors', 'sd1')
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(WeightsError, match='x.safetensors .* is no complete safetensors file') as error:
        single_file.read_single_file(path, families=FAMILIES)
    assert len(str(error.value).splitlines()) == 1
