"""A tiny pipeline of a rectified flow, ours and diffusers' beside each other: images, folders and LoRA files."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import diffusers
import jax
import numpy as np
import torch

from dreambooth_jax.diffusion import noise, samplers
from dreambooth_jax.generation import text_to_image
from dreambooth_jax.generation.cascade import Cascade
from dreambooth_jax.losses.denoising import DenoisingLoss, Objective, streams
from dreambooth_jax.models import lora
from dreambooth_jax.weights import folders
from tests.support import tiny_flow
from tests.support.generating import generate
from tests.support.reports import nothing_reported
from tests.support.torch_reference import nchw, nhwc, quick_jit

PROMPT, SEED, STEPS = 'a photo of sks dog on the beach', 5, 10


@dataclasses.dataclass(frozen=True)
class FlowModel:
    """A tiny model and how diffusers' pipeline of it is called.

    Attributes:
      tiny: a module with folder(), torch_pipeline() and SIZE.
      shape: (h, w, C) of what is denoised.
      guidance: guidance_scale here.
      options: further arguments of diffusers' pipeline; its guidance_scale, if that counts differently.
      pack, unpack: from torch's latents [B, C, h, w] to those that the pipeline takes and passes to callbacks, and
        back.
      empty: whether guidance is a second pass with the empty prompt.
      torch_latents: (pipe, posterior, its noise f[N, C, h, w]) -> the latents that the script trains on.
      torch_velocity: (pipe, transformer, noisy latents, s f[N], prompts) -> velocities f[N, C, h, w].
    """

    tiny: ModuleType
    shape: tuple[int, int, int]
    guidance: float
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    pack: Callable[[torch.Tensor], torch.Tensor] = lambda latents: latents
    unpack: Callable[[torch.Tensor], torch.Tensor] = lambda latents: latents
    empty: bool = True
    torch_latents: Callable[..., torch.Tensor] | None = None
    torch_velocity: Callable[..., torch.Tensor] | None = None

    @functools.cached_property
    def cascade(self) -> Cascade:
        """Ours."""
        return Cascade.load(self.tiny.folder(), size=self.tiny.SIZE)

    def image(self, cascade: Cascade) -> np.ndarray:
        """Returns an image of ours, i64[1, H, W, 3]."""
        options = dict(steps=STEPS, guidance_scale=self.guidance, sampler='euler', seed=SEED, batch_size=1)
        return generate(cascade, [PROMPT], num_images=1, **options).final.astype(int)

    @functools.cached_property
    def first_noise(self) -> np.ndarray:
        """The noise of that image, f32[1, h, w, C]."""
        key = jax.random.split(text_to_image.image_keys(SEED, np.zeros(1, int))[0], 3)[0]
        return np.asarray(samplers.initial_noise(key[None], self.shape))

    def torch_image(self, pipe, **more) -> np.ndarray:
        """Returns the image that diffusers makes of the same noise."""
        options = {'guidance_scale': self.guidance, **self.options, **more}
        images = pipe(
            prompt=PROMPT,
            height=self.tiny.SIZE,
            width=self.tiny.SIZE,
            num_inference_steps=STEPS,
            latents=self.pack(nchw(self.first_noise)),
            output_type='np',
            **options,
        ).images
        return (images * 255).round().astype(int)

    @functools.cached_property
    def images(self) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
        """Ours, that of diffusers, and diffusers' latents f32[1, h, w, C] before every step and at the end."""
        latents = [self.first_noise]

        def keep(pipe, step, time, values):
            latents.append(nhwc(self.unpack(values['latents'])))
            return values

        images = self.torch_image(self.tiny.torch_pipeline(), callback_on_step_end=keep)
        return self.image(self.cascade), images, latents

    def check_image(self) -> None:
        """Ten steps give the image of diffusers."""
        found, expected, _ = self.images
        assert expected.std() > 20
        assert np.abs(found - expected).max() <= 2

    def check_steps(self) -> None:
        """Every step of Euler is that of diffusers."""
        base, latents = self.cascade.base, self.images[2]
        s = base.family.process(base).of_shape(self.shape[:2]).sigmas(STEPS)
        conditioning = self.cascade.encode([PROMPT, ''])
        if not self.empty:
            conditioning = {**conditioning, 'guidance': np.full(2, self.guidance, np.float32)}

        @quick_jit
        def velocities(x, s):
            return base.family.predict(base.denoiser.apply, base.denoiser.params, x, s, conditioning)

        assert len(latents) == STEPS + 1
        for step, (x, following) in enumerate(zip(latents[:-1], latents[1:], strict=True)):
            prompted, empty = velocities(np.concatenate([x, x]), np.full(2, s[step], np.float32))
            velocity = empty + self.guidance * (prompted - empty) if self.empty else prompted
            np.testing.assert_allclose(x + (s[step + 1] - s[step]) * velocity, following, atol=1e-4)

    def check_written_folder(self, folder, pipeline_class, *, spread: float) -> diffusers.DiffusionPipeline:
        """A folder with another transformer gives diffusers our image; `spread` is how far its parameters are moved."""
        base, rng = self.cascade.base, np.random.default_rng(3)
        params = {
            name: np.asarray(value) + spread * rng.standard_normal(value.shape).astype(np.float32)
            for name, value in base.denoiser.params.items()
        }
        trained = self.cascade.with_params(base={'transformer': params})
        folders.write_pipeline(trained.base, folder)
        pipe = self.torch_pipeline_of(folder)
        assert type(pipe) is pipeline_class
        expected = self.torch_image(pipe)
        assert np.abs(self.image(trained) - expected).max() <= 2
        assert np.abs(self.images[1] - expected).max() > 10
        return pipe

    @staticmethod
    def torch_pipeline_of(folder, **parts) -> diffusers.DiffusionPipeline:
        """diffusers' pipeline of a folder, with these parts instead of its own."""
        pipe = diffusers.DiffusionPipeline.from_pretrained(folder, local_files_only=True, **parts)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    @functools.cached_property
    def lora(self) -> dict:
        """Adapters of the layers that get them unless settings name others."""
        return tiny_flow.usual_lora(self.cascade.base)

    def image_with(self, params: Mapping[str, Any]) -> np.ndarray:
        """Returns the image of the model with these adapters."""
        full = {**self.cascade.base.denoiser.params, **params}
        merged = lora.merge(full, rank=tiny_flow.RANK, alpha=tiny_flow.ALPHA)
        return self.image(self.cascade.with_params(base={'transformer': merged}))

    @functools.cached_property
    def image_with_lora(self) -> np.ndarray:
        """The image of the model with `lora`."""
        return self.image_with(self.lora)

    def check_lora(self, folder, format: str, params=None, image=None, *, layers: int | None = None) -> None:
        """A file of adapters is read back, and diffusers loads all of it and generates our image.

        Args:
          params, image: adapters and the image of the model with them; None: `lora`.
          layers: how many layers diffusers then adapts; None: as many as there are.
        """
        params = self.lora if params is None else params
        image = self.image_with_lora if image is None else image
        tiny_flow.read_back(folder, self.cascade.base, params, format)
        pipe = self.torch_pipeline_of(self.tiny.folder())
        with nothing_reported('No LoRA keys associated to CLIPText'):  # said of every file for a denoiser alone
            pipe.load_lora_weights(folder)
        adapted = [name for name, _ in pipe.transformer.named_modules() if name.endswith('.lora_A')]
        assert len(adapted) == (layers or len({name.rpartition('.')[0] for name in params}))
        expected = self.torch_image(pipe)
        assert np.abs(image - expected).max() <= 2
        assert np.abs(self.images[0] - expected).max() > 10

    def examples(self, images: np.ndarray, prompts) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Returns what a loss takes for images u8[N, H, W, 3] with N prompts: the frozen data, and the batch of all."""
        count = len(prompts)
        frozen = {**self.cascade.base.space.prepare(images, None, flip=False, pairs=False)}
        frozen |= {'prompt_of': np.arange(count), 'text': jax.tree.map(np.asarray, self.cascade.encode(prompts))}
        ones = np.ones(count, np.float32)
        return frozen, {'image': np.arange(count), 'slot': np.arange(count), 'is_instance': ones, 'weight': ones}

    def torch_losses(self, transformer: torch.nn.Module, images: np.ndarray, prompts, keys: jax.Array) -> torch.Tensor:
        """Returns the script's loss f32[N] of the same images and prompts, with the noise and times of N keys."""
        base, pipe = self.cascade.base, self.tiny.torch_pipeline()
        time_keys, noise_keys, _, _, latent_keys, *_ = streams(keys, 8)
        drawn = nchw(noise.sample_noise(noise_keys, self.shape))
        s = torch.from_numpy(np.array(base.family.process(base).sample_times(time_keys)))
        with torch.no_grad():
            posterior = pipe.vae.encode(nchw(images.astype(np.float32) / 127.5 - 1)).latent_dist
            latents = self.torch_latents(pipe, posterior, nchw(noise.sample_noise(latent_keys, self.shape)))
        wide = s.view(-1, 1, 1, 1)
        predicted = self.torch_velocity(pipe, transformer, (1 - wide) * latents + wide * drawn, s, prompts)
        return torch.mean((predicted - (drawn - latents)) ** 2, dim=(1, 2, 3))

    def check_loss(self, images: np.ndarray, prompts) -> None:
        """The loss of images u8[N, H, W, 3] with N prompts is that of the script, with the same noise and times."""
        base = self.cascade.base
        frozen, batch = self.examples(images, prompts)
        keys = jax.random.split(jax.random.key(1), len(prompts))
        loss = DenoisingLoss.of(base, base.denoiser.apply, objective=Objective())
        found, parts = jax.jit(loss.loss)({'transformer': base.denoiser.params}, frozen, batch, keys)
        with torch.no_grad():
            expected = self.torch_losses(self.tiny.torch_pipeline().transformer, images, prompts, keys).numpy()
        assert 0.5 < expected.mean() and np.ptp(expected) > 0.01
        np.testing.assert_allclose(found, expected, rtol=1e-5)
        np.testing.assert_array_equal(parts['denoising'], found)
