"""Every setting of the programs: `DreamBoothConfig` for train and its companions, `PretrainConfig` for pretrain.

Each setting stands here once, with its default, its meaning and, where it has one, its legal range. A file in configs/
starts from `to_config_dict(DreamBoothConfig())` and changes what differs; programs call `resolve` once and pass on
plain dataclasses. How that works and what the errors say: settings.py. Everything random is a function of `seed`.
Recipe: Ruiz et al. 2023 (DreamBooth); where the paper is silent, defaults are those of diffusers' training scripts.
"""

import dataclasses
from typing import Literal

from dreambooth_jax.settings import Settings, SettingsError, resolve, setting, to_config_dict, to_dict

__all__ = [
    'BaseConfig', 'CheckpointConfig', 'ConceptConfig', 'DataConfig', 'DreamBoothConfig', 'ObjectiveConfig',
    'OptimizerConfig', 'ParallelConfig', 'PretrainConfig', 'PriorConfig', 'SamplesConfig', 'Settings', 'SettingsError',
    'SuperResolutionConfig', 'resolve', 'setting', 'to_config_dict', 'to_dict',
]  # fmt: skip

STORYBOOK = 'storybook'  # the model that ships with the package
# How it draws best: chosen by experiments/storybook_base.
STORYBOOK_SAMPLING = {'steps': 25, 'guidance_scale': 4.0, 'sampler': 'ddpm'}
STORYBOOK_ENLARGING = {'sample_steps': 15, 'sample_guidance_scale': 1.0}  # its second stage
NO_MODEL = 'none'  # super_resolution_model: leave the second stage out

Sampler = Literal['ddpm', 'ddim', 'dpmsolver++']
RateSchedule = Literal['constant', 'warmup', 'cosine']
Timestep = int  # of a noise schedule of 1000 steps
LAST_TIMESTEP = 999


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConceptConfig(Settings):
    """One subject: where its pictures are, and what it and its class are called."""

    # Folder with 3-5 pictures of the subject. A text file beside a picture (dog.txt beside dog.jpg) is its caption and
    # replaces instance_prompt for that picture. None: the Storybook subject's built-in pictures.
    instance_dir: str | None = None
    # Name of a built-in Storybook subject, one of the dataset's 30; only used while instance_dir is None.
    subject: str | None = None
    # "a [identifier] [class noun]", such as 'a sks dog'; the identifier is a rare token (program find_identifier).
    instance_prompt: str = ''
    # "a [class noun]", such as 'a dog'.
    class_prompt: str = ''

    def check_complete(self, path: str, model: str) -> None:
        """Raises SettingsError if something is missing that training on `model` needs."""
        if self.instance_dir is None and model != STORYBOOK:
            raise SettingsError(
                f"{path}.instance_dir must be given when config.model is {model!r}: the folder of the subject's "
                f'pictures (only {STORYBOOK!r} has built-in subjects)'
            )
        if self.instance_dir is None and self.subject is None:
            raise SettingsError(f'{path}.instance_dir (a folder) or {path}.subject (a built-in one) must be given')
        for name, example in (('instance_prompt', 'a sks dog'), ('class_prompt', 'a dog')):
            if not getattr(self, name).strip():
                raise SettingsError(f'{path}.{name} must be given, for example {example!r}')


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig(ConceptConfig):
    """The subject's pictures, and how they are read."""

    # Side of the square training pictures, in pixels. None: the model's own sample size.
    resolution: int | None = setting(None, '> 0')
    # Mirror half of the rows. Off: it would teach that a badge may sit on either side, and reverses lettering.
    random_flip: bool = False
    # Crops kept of each picture: the centre one, then random ones. 1: the centre alone.
    crops: int = setting(1, '> 0')
    # Keep the ratio of width and height: each photo is brought to the nearest of some sizes of about resolution^2
    # pixels, from 1:2 to 2:1, and a step takes all its rows from one size. Every size in use has its own compiled step
    # and its own copy of the class pictures in the device's memory, fitted to it. Of the base stage alone: the
    # super-resolution stage trains on squares. False: the square in the middle of every photo.
    aspect_buckets: bool = False
    # Several subjects in one run, instead of the four settings above, which then stay empty.
    concepts: tuple[ConceptConfig, ...] = ()

    def check(self, path: str) -> None:
        if self.concepts:
            for field in dataclasses.fields(ConceptConfig):
                if getattr(self, field.name):
                    raise SettingsError(
                        f'{path}.{field.name} is {getattr(self, field.name)!r} but {path}.concepts names the subjects '
                        f'of this run; leave one of the two empty'
                    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PriorConfig(Settings):
    """Prior preservation: class pictures drawn by the frozen model keep the class from becoming the subject."""

    # lambda of the loss mean(instance) + lambda * mean(class); 0 trains without class pictures.
    weight: float = setting(1.0, '>= 0')
    # Class pictures per class prompt; the paper takes about 1000, "but less can be used".
    num_images: int = setting(200, '> 0')
    # Folder of the class pictures, filled where it holds too few. None: prior/ in the run's folder.
    dir: str | None = None
    # Denoise steps of a class picture.
    steps: int = setting(50, '> 0')
    # Classifier-free guidance of class pictures; 1 is none. The paper is silent.
    guidance_scale: float = setting(7.5, '>= 1')
    # Class pictures drawn at once, on all devices together.
    batch_size: int = setting(16, '> 0')
    # 'ddpm' is the ancestral sampler, the paper's choice; the others need fewer steps.
    sampler: Sampler = 'ddpm'


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Settings):
    """The optimiser; both stages share it, each with its own learning rate."""

    # 'adamw': as torch.optim.AdamW computes it.
    kind: Literal['adamw'] = 'adamw'
    # Decay of the first and second moment.
    betas: tuple[float, float] = setting((0.9, 0.999), 'in [0, 1)')
    # Decoupled weight decay.
    weight_decay: float = setting(0.01, '>= 0')
    # Added to the root of the second moment.
    epsilon: float = setting(1e-8, '> 0')
    # Largest global norm of the gradient; larger ones are scaled down to it. None: no clipping.
    grad_clip_norm: float | None = setting(1.0, '> 0')
    # Decay per step of the averaged weights, which are then sampled and exported. None: no average.
    ema_decay: float | None = setting(None, 'in (0, 1)')
    # 'constant'; 'warmup': linear, then constant; 'cosine': linear, then to 0 at the stage's last step.
    schedule: RateSchedule = 'constant'
    # Steps of the linear rise of 'warmup' and 'cosine'.
    warmup_steps: int = setting(0, '>= 0')

    def check(self, path: str) -> None:
        if self.schedule == 'constant' and self.warmup_steps:
            raise SettingsError(
                f"{path}.warmup_steps is {self.warmup_steps} but {path}.schedule is 'constant', which has no warm-up; "
                f"set the schedule to 'warmup' or 'cosine'"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObjectiveConfig(Settings):
    """How the denoising error of a row is weighed; the same in both stages."""

    # Cap of the signal-to-noise weight (Hang et al. 2023), usually 5. None: all times weigh the same.
    min_snr_gamma: float | None = setting(None, '> 0')
    # Strength of noise that is constant over each channel; about 0.1 where very dark pictures are wanted.
    offset_noise: float = setting(0.0, '>= 0')
    # Train the learned variance of models that have one. False freezes that half of their last layer.
    train_variance: bool = True
    # Weight of the variance's bound, which the loss already scales as Nichol & Dhariwal's lambda = 0.001 does: 1 is
    # their hybrid loss.
    variance_weight: float = setting(1.0, '>= 0')
    # Share of rows whose prompt is emptied, for classifier-free guidance; fine-tuning on a few pictures needs none.
    prompt_dropout: float = setting(0.0, 'in [0, 1]')


@dataclasses.dataclass(frozen=True, kw_only=True)
class BaseConfig(Settings):
    """Fine-tuning of the base stage."""

    # Optimiser steps; the paper takes about 1000. 0 leaves the stage as it is.
    steps: int = setting(1000, '>= 0')
    # Instance rows per step, on all devices together; as many class rows come on top while prior.weight > 0.
    batch_size: int = setting(1, '> 0')
    # The paper: 1e-5 for Imagen, 5e-6 for Stable Diffusion.
    learning_rate: float = setting(5e-6, '> 0')
    # Train the text encoder along: closer to the subject, more memory.
    train_text_encoder: bool = False
    # Its own learning rate. None: that of the UNet.
    text_encoder_learning_rate: float | None = setting(None, '> 0')

    def check(self, path: str) -> None:
        if self.text_encoder_learning_rate is not None and not self.train_text_encoder:
            raise SettingsError(
                f'{path}.text_encoder_learning_rate is {self.text_encoder_learning_rate} but '
                f'{path}.train_text_encoder is False; set that to True, or the rate to None'
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SuperResolutionConfig(Settings):
    """Fine-tuning of the super-resolution stage, which the paper calls essential for most subjects."""

    # Optimiser steps. 0 leaves the stage as it is.
    steps: int = setting(0, '>= 0')
    # Instance rows per step, on all devices together.
    batch_size: int = setting(1, '> 0')
    # The paper gives none for this stage; that of the base stage is a good start.
    learning_rate: float = setting(1e-5, '> 0')
    # Lowest and highest noise augmentation of the low picture in training: times of the image_noising schedule, both
    # included, drawn per row. The paper lowers it for fine-tuning; high levels blur fine detail.
    noise_level: tuple[Timestep, Timestep] = setting((0, 50), f'in [0, {LAST_TIMESTEP}]')
    # Train on class pictures as well; nothing to do while prior.weight is 0.
    with_prior: bool = False
    # The augmentation when samples are drawn, a time of the same schedule; best inside noise_level.
    sample_noise_level: Timestep = setting(0, f'in [0, {LAST_TIMESTEP}]')
    # Denoise steps and guidance when pictures are drawn. None: those of the base stage.
    sample_steps: int | None = setting(None, '> 0')
    sample_guidance_scale: float | None = setting(None, '>= 1')

    def drawing(self) -> dict[str, int | float | None]:
        """How this stage draws, as options of Cascade.generate."""
        return {
            'noise_level': self.sample_noise_level,
            'super_resolution_steps': self.sample_steps,
            'super_resolution_guidance_scale': self.sample_guidance_scale,
        }

    def check(self, path: str) -> None:
        check_noise_level(self.noise_level, path)


def check_noise_level(noise_level: tuple[int, int], path: str) -> None:
    """Raises SettingsError unless low <= high."""
    if noise_level[0] > noise_level[1]:
        raise SettingsError(f'{path}.noise_level must be (low, high) with low <= high, got {noise_level}')


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParallelConfig(Settings):
    """How the work is spread over devices, and in which numbers it is done."""

    # 'pmap': every device holds everything and takes its share of the rows; 'fsdp': parameters are sharded as well.
    mode: Literal['pmap', 'fsdp'] = 'pmap'
    # Numbers of the networks' compute; master weights, norms and loss stay float32. 'auto': bfloat16 but on CPU.
    dtype: Literal['auto', 'float32', 'bfloat16'] = 'auto'
    # 'fsdp' shards parameters of at least this many bytes; smaller ones are copied.
    fsdp_min_bytes: int = setting(4 * 2**20, '>= 0')
    # Optimiser steps in one device call (lax.scan), which saves host time. None: 1 on CPU, where convolutions inside a
    # loop run slowly, else 10.
    steps_per_dispatch: int | None = setting(None, '> 0')


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig(Settings):
    """What a run can be resumed from."""

    # Steps between checkpoints; the last step always has one. 0: only that.
    every: int = setting(500, '>= 0')
    # Newest checkpoints kept.
    keep: int = setting(2, '> 0')


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplesConfig(Settings):
    """Pictures drawn while training, to watch it."""

    # Steps between samples; the last step always has some. 0: only those.
    every: int = setting(0, '>= 0')
    # What to draw. Empty: the instance and class prompts (pretraining: nothing).
    prompts: tuple[str, ...] = ()
    # Pictures per prompt.
    num_images: int = setting(2, '> 0')
    # Denoise steps.
    steps: int = setting(25, '> 0')
    # Classifier-free guidance; 1 is none.
    guidance_scale: float = setting(7.5, '>= 1')
    sampler: Sampler = 'dpmsolver++'
    # Of the samples alone, so that they show the same noise at every step.
    seed: int = setting(0, '>= 0')


@dataclasses.dataclass(frozen=True, kw_only=True)
class DreamBoothConfig(Settings):
    """A whole DreamBooth run: class pictures, base stage, super-resolution stage, samples, export."""

    # Of pictures, times, noise and dropout: the same seed gives the same run.
    seed: int = setting(0, '>= 0')
    # 'storybook' (ships with the package), a folder in diffusers' layout, or a hub id.
    model: str = STORYBOOK
    # Second stage: a folder or a hub id. None: the model's own super_resolution/ folder if it has one. 'none': no
    # second stage even then, whatever super_resolution.steps says.
    super_resolution_model: str | None = None
    data: DataConfig = DataConfig()
    prior: PriorConfig = PriorConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    base: BaseConfig = BaseConfig()
    super_resolution: SuperResolutionConfig = SuperResolutionConfig()
    parallel: ParallelConfig = ParallelConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    samples: SamplesConfig = SamplesConfig()
    # Write the trained pipeline to model/ in the run's folder; other formats are the export program's.
    export: bool = True

    def check(self, path: str) -> None:
        for index, concept in enumerate(self.concepts()):
            where = f'{path}.data.concepts[{index}]' if self.data.concepts else f'{path}.data'
            concept.check_complete(where, self.model)
        if self.data.aspect_buckets and (self.parallel.steps_per_dispatch or 1) > 1:
            raise SettingsError(
                f'{path}.parallel.steps_per_dispatch is {self.parallel.steps_per_dispatch} but '
                f'{path}.data.aspect_buckets changes the size of the pictures from step to step; set it to 1 or None'
            )

    def concepts(self) -> tuple[ConceptConfig, ...]:
        """Every subject of the run: data.concepts, or the one that `data` itself describes."""
        return self.data.concepts or (self.data,)

    def sample_prompts(self) -> tuple[str, ...]:
        """samples.prompts, or the instance and class prompt of every subject, each once."""
        prompts = [prompt for concept in self.concepts() for prompt in (concept.instance_prompt, concept.class_prompt)]
        return self.samples.prompts or tuple(dict.fromkeys(prompts))


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainConfig(OptimizerConfig, ObjectiveConfig):
    """Pretraining of one Storybook stage from scratch; with one stage, optimiser and objective need no group."""

    # Of the weights' start, the painted scenes, times and noise.
    seed: int = setting(0, '>= 0')
    # Which network of the cascade is trained.
    stage: Literal['base', 'super_resolution'] = 'base'
    # Optimiser steps.
    steps: int = setting(30_000, '> 0')
    # Rows per step, on all devices together.
    batch_size: int = setting(64, '> 0')
    learning_rate: float = setting(3e-4, '> 0')
    # As in OptimizerConfig and ObjectiveConfig, with what pretraining needs.
    schedule: RateSchedule = 'cosine'
    warmup_steps: int = setting(500, '>= 0')
    ema_decay: float | None = setting(0.999, 'in (0, 1)')
    prompt_dropout: float = setting(0.1, 'in [0, 1]')
    # Share of captions with a meaningless rare token before the noun, so that an identifier is neutral, not unseen.
    rare_token_rate: float = setting(0.05, 'in [0, 1]')
    # Pictures painted for one pool, which lives on the device while the next is painted.
    pool_size: int = setting(4096, '> 0')
    # How often a pool is trained on before the next replaces it.
    passes: int = setting(2, '> 0')
    # Host processes that paint. 0: in the program itself.
    painters: int = setting(1, '>= 0')
    # Super-resolution: train on random crops of this side, in pixels. None: whole pictures.
    crop: int | None = setting(None, '> 0')
    # Super-resolution: side of the high picture / side of the low one.
    factor: int = setting(4, '> 1')
    # Super-resolution: lowest and highest noise augmentation, as in SuperResolutionConfig; pretraining sees all of it.
    noise_level: tuple[Timestep, Timestep] = setting((0, 350), f'in [0, {LAST_TIMESTEP}]')
    # Pipeline folder whose weights training starts from. None: from scratch.
    init: str | None = None
    # Super-resolution: pipeline folder of the base stage, whose text encoder and tokenizer are used, frozen.
    base: str | None = None
    # Architecture, as in the config.json of a diffusers UNet2DConditionModel; sample_size is the pictures' side.
    unet: dict = dataclasses.field(default_factory=dict)
    # Architecture, as in the config.json of a transformers T5EncoderModel; of the base stage alone.
    text_encoder: dict = dataclasses.field(default_factory=dict)
    # Noise schedule, as in diffusers' scheduler_config.json.
    scheduler: dict = dataclasses.field(default_factory=dict)
    # The same for the noise that super-resolution puts on the low picture.
    image_noising_scheduler: dict = dataclasses.field(default_factory=dict)
    parallel: ParallelConfig = ParallelConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    samples: SamplesConfig = SamplesConfig()

    def check(self, path: str) -> None:
        super().check(path)
        check_noise_level(self.noise_level, path)
        if self.init is None and not self.unet:
            raise SettingsError(f'{path}.unet must describe the network unless {path}.init names a folder that has one')
        if self.stage == 'base':
            if self.crop is not None:
                raise SettingsError(f"{path}.crop is {self.crop} but only stage 'super_resolution' trains on crops")
            if self.init is None and not self.text_encoder:
                raise SettingsError(f'{path}.text_encoder must describe the T5 encoder, which the base stage trains')
            if self.base is not None:
                raise SettingsError(f"{path}.base is {self.base!r} but only stage 'super_resolution' builds on a base")
        else:
            if self.base is None:
                raise SettingsError(f"{path}.base must name the base stage's folder: its text encoder is used")
            if self.text_encoder:
                raise SettingsError(f'{path}.text_encoder must stay empty: it comes from {path}.base, {self.base!r}')
