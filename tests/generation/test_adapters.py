"""LoRA files merged into a cascade: by strength, one after the other, or one sentence that names the other model."""

import types

import jax
import numpy as np
import pytest

from dreambooth_jax.config import ConfigError
from dreambooth_jax.generation.adapters import with_lora
from dreambooth_jax.generation.cascade import SUPER_RESOLUTION, Cascade
from dreambooth_jax.weights import files
from dreambooth_jax.weights.errors import WeightsError
from tests.support import tiny_pipelines

NAME = 'mid_block.resnets.0.time_emb_proj'


def written(path, seed=0):
    """A LoRA of rank 2 of one layer, and what it adds to the layer's kernel."""
    kernel = tiny_pipelines.base().denoiser.params[f'{NAME}.kernel']
    rng = np.random.default_rng(seed)
    down, up = (rng.normal(size=shape).astype(np.float32) for shape in ((2, kernel.shape[0]), (kernel.shape[1], 2)))
    files.write_tensors(path, {f'unet.{NAME}.lora_A.weight': down, f'unet.{NAME}.lora_B.weight': up})
    return path, (up @ down).T


@pytest.mark.parametrize('scale', [1.0, 0.5, 0.0, -1.0])
def test_a_file_is_merged_by_its_strength(tmp_path, scale):
    path, added = written(tmp_path / 'a.safetensors')
    before = Cascade(tiny_pipelines.base())
    after = with_lora(before, path, scale).base.denoiser.params
    kernel = before.base.denoiser.params[f'{NAME}.kernel']
    np.testing.assert_allclose(after[f'{NAME}.kernel'], kernel + scale * added, atol=1e-4)
    assert all(
        np.array_equal(after[name], value) for name, value in before.base.denoiser.params.items() if NAME not in name
    )


def test_several_files_are_merged_one_after_the_other(tmp_path):
    (one, first), (other, second) = (written(tmp_path / f'{seed}.safetensors', seed) for seed in (0, 1))
    cascade = Cascade(tiny_pipelines.base())
    both = with_lora(with_lora(cascade, one), other, 2.0).base.denoiser.params
    kernel = cascade.base.denoiser.params[f'{NAME}.kernel']
    np.testing.assert_allclose(both[f'{NAME}.kernel'], kernel + first + 2 * second, atol=1e-4)


def test_a_stage_that_is_not_there_is_one_sentence(tmp_path):
    with pytest.raises(
        ConfigError, match='is for a super_resolution stage, but this IFPipeline has none; leave it out$'
    ):
        with_lora(Cascade(tiny_pipelines.base()), tmp_path / 'a.safetensors', stage=SUPER_RESOLUTION)


def test_a_lora_of_another_published_model_is_said_to_be_one(tmp_path):
    path, layer = tmp_path / 'x.safetensors', 'mid_block.attentions.0.transformer_blocks.0.attn2.to_k'
    tensors = {f'unet.{layer}.lora_A.weight': np.zeros((1, 2048)), f'unet.{layer}.lora_B.weight': np.zeros((640, 1))}
    files.write_tensors(path, {name: value.astype(np.float32) for name, value in tensors.items()})
    params = {f'{layer}.kernel': jax.ShapeDtypeStruct((768, 320), np.float32)}
    denoiser = types.SimpleNamespace(params=params, frozen_dtype=None)
    family = types.SimpleNamespace(denoiser='unet', lora_layers=None)
    base = types.SimpleNamespace(family=family, denoiser=denoiser, text_encoders={})
    with pytest.raises(WeightsError) as error:
        with_lora(types.SimpleNamespace(base=base), path)
    assert str(error.value) == (
        f'{path} is a LoRA of Stable Diffusion XL (text of width 2048), but this model is Stable Diffusion 1.x (text '
        f'of width 768); use one that was trained on a model of the same kind.'
    )


def test_a_file_is_not_merged_into_quantised_kernels(tmp_path):
    path, _ = written(tmp_path / 'a.safetensors')
    folder = tiny_pipelines.folder()
    with pytest.raises(ConfigError) as error:
        with_lora(Cascade.load(folder, frozen_dtype='nf4'), path)
    assert str(error.value) == (
        f'{path} is merged into kernels, but those of {folder} are quantised to nf4; load it without frozen_dtype'
    )
