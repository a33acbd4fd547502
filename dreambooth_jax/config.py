"""Every setting of DreamBooth, for train and its companions; those of pretrain are in pretrain_config.py.

Each setting stands here once, with its default, its meaning and, where it has one, its legal range. A file in configs/
starts from `to_config_dict(DreamBoothConfig())` and changes what differs; programs call `resolve` once and pass on
plain dataclasses. How that works and what the errors say: settings.py. Everything random is a function of `seed`.
Recipe: Ruiz et al. 2023 (DreamBooth); where the paper is silent, defaults are those of diffusers' training scripts.
"""

import dataclasses
from typing import Literal

from dreambooth_jax.settings import Settings, SettingsError, resolve, setting, to_config_dict, to_dict

__all__ = [
    'BaseConfig', 'CheckpointConfig', 'ConceptConfig', 'DataConfig', 'DreamBoothConfig', 'LoraConfig',
    'ObjectiveConfig', 'OptimizerConfig', 'ParallelConfig', 'PriorConfig', 'SamplesConfig',
    'Settings', 'SettingsError', 'SuperResolutionConfig', 'TextualInversionConfig', 'resolve', 'setting',
    'to_config_dict', 'to_dict',
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
LOWEST_MULTIPLIER = 0.01  # of prodigy's rate: below it stands a learning rate that was meant for another kind


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

    # 'adamw': as torch.optim.AdamW computes it. 'adafactor': rows and columns in the place of second moments, no first
    # ones, so next to no memory; the rate is not scaled by the size of a weight and means what it means for adamw.
    # 'lion': steps of one size, in the sign's direction; a rate 3 to 10 times lower, a decay as much higher, than
    # adamw's. 'prodigy': finds its rate; learning_rate is a multiplier of that, best 1.0.
    kind: Literal['adamw', 'adafactor', 'lion', 'prodigy'] = 'adamw'
    # Numbers that adamw's two moments are stored in, 8, 4 or 2 bytes a weight; each step computes in float32.
    # 'int8': in blocks of 256 as Dettmers et al. 2022, where tensors below 4096 weights stay float32.
    moments: Literal['float32', 'bfloat16', 'int8'] = 'float32'
    # Decay of the first and second moment. None: (0.9, 0.999), of lion (0.9, 0.99); adafactor has none.
    betas: tuple[float, float] | None = setting(None, 'in [0, 1)')
    # Decoupled weight decay, times the learning rate.
    weight_decay: float = setting(0.01, '>= 0')
    # Added to the root of the second moment. None: 1e-8; adafactor and lion have none.
    epsilon: float | None = setting(None, '> 0')
    # Largest global norm of the gradient; larger ones are scaled down to it. None: no clipping.
    grad_clip_norm: float | None = setting(1.0, '> 0')
    # Decay per step of the averaged weights, which are then sampled and exported. None: no average.
    ema_decay: float | None = setting(None, 'in (0, 1)')
    # 'constant'; 'warmup': linear, then constant; 'cosine': linear, then to 0 at the stage's last step.
    schedule: RateSchedule = 'constant'
    # Steps of the linear rise of 'warmup' and 'cosine'.
    warmup_steps: int = setting(0, '>= 0')

    def check(self, path: str) -> None:
        if self.moments != 'float32' and self.kind != 'adamw':
            raise SettingsError(
                f"{path}.moments is {self.moments!r} but only kind 'adamw' has moments to compress; {path}.kind is "
                f"{self.kind!r}, so leave moments at 'float32'"
            )
        for name, without in (('betas', ('adafactor',)), ('epsilon', ('adafactor', 'lion'))):
            if getattr(self, name) is not None and self.kind in without:
                raise SettingsError(
                    f'{path}.{name} is {getattr(self, name)} but {path}.kind {self.kind!r} has none; leave it None'
                )
        if self.schedule == 'constant' and self.warmup_steps:
            raise SettingsError(
                f"{path}.warmup_steps is {self.warmup_steps} but {path}.schedule is 'constant', which has no warm-up; "
                f"set the schedule to 'warmup' or 'cosine'"
            )

    def check_learning_rate(self, rate: float, path: str) -> None:
        """Raises SettingsError if `rate`, the setting of that name, is one that this kind cannot mean."""
        if self.kind == 'prodigy' and rate < LOWEST_MULTIPLIER:
            raise SettingsError(
                f"{path} is {rate} but the optimiser's kind is 'prodigy', which finds the rate and multiplies it by "
                f'this; set it to 1.0 (at least {LOWEST_MULTIPLIER})'
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
    # Micro-batches that a step's rows are cut into, one after the other: the same step in less memory, rounding aside.
    accumulation: int = setting(1, '> 0')
    # The paper: 1e-5 for Imagen, 5e-6 for Stable Diffusion.
    learning_rate: float = setting(5e-6, '> 0')
    # False: the UNet is frozen, as in textual inversion alone.
    train_unet: bool = True
    # Train the text encoder along: closer to the subject, more memory.
    train_text_encoder: bool = False
    # Its own learning rate. None: that of the UNet.
    text_encoder_learning_rate: float | None = setting(None, '> 0')

    # How many of CLIP's last layers are left out when prompts are read, in training and in drawing; some community
    # models were trained with 1. T5 has none to skip.
    clip_skip: int = setting(0, '>= 0')

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
    # As in BaseConfig.
    accumulation: int = setting(1, '> 0')
    # The paper gives none for this stage; that of the base stage is a good start.
    learning_rate: float = setting(1e-5, '> 0')
    # Lowest and highest noise augmentation of the low picture in training: times of the image_noising schedule, both
    # included, drawn per row. The paper lowers it for fine-tuning; high levels blur fine detail.
    noise_level: tuple[Timestep, Timestep] = setting((0, 50), f'in [0, {LAST_TIMESTEP}]')
    # Train on random crops of this side, in pixels of the high picture. None: on whole pictures; the x4 upscaler of
    # latents, whose whole pictures are too large, on crops of 512.
    crop: int | None = setting(None, '> 0')
    # The x4 upscaler: crops kept of each picture, their latents encoded once; other stages crop anew at every step.
    crops: int = setting(8, '> 0')
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
class LoraConfig(Settings):
    """Low-rank adapters (Hu et al. 2021) instead of whole networks, in every stage that trains."""

    # Inner width of the adapters, usually 4 to 64. None: whole networks train.
    rank: int | None = setting(None, '> 0')
    # The adapters' output is multiplied by alpha / rank. None: as rank, a factor of 1.
    alpha: float | None = setting(None, '> 0')
    # Which layers, as regular expressions of whole dotted paths such as '.*attn2\.to_k'; convolutions too. Empty: the
    # attention projections.
    targets: tuple[str, ...] = ()
    # Learn the length of every output's kernel as well (DoRA, Liu et al. 2024).
    dora: bool = False

    @property
    def scale_alpha(self) -> float:
        """alpha, or its default."""
        return float(self.rank if self.alpha is None else self.alpha)

    def check(self, path: str) -> None:
        given = {'alpha': self.alpha, 'targets': self.targets, 'dora': self.dora}
        for name, value in given.items():
            if self.rank is None and value:
                raise SettingsError(
                    f'{path}.{name} is {value!r} but {path}.rank is None, so whole networks train; set the rank, or '
                    f'leave {path}.{name} out'
                )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextualInversionConfig(Settings):
    """A new word for the base stage's text encoders (Gal et al. 2022), alone or beside whatever else trains."""

    # The word, in lower case and no token of the model yet, such as '<sks-dog>'; tokenizers find it inside other words
    # too. It stands in instance prompts in the identifier's place. None: no new word.
    token: str | None = None
    # Tokens that it stands for, each a learned row of the text encoder's token table.
    num_vectors: int = setting(1, '> 0')
    # What its rows start as: those of these words' tokens, best the class noun; row i takes token i, over and over.
    # None: rows drawn at random, like those of the table.
    initializer: str | None = None
    # Of the rows, which never decay; diffusers' script takes 5e-4. None: base.learning_rate.
    learning_rate: float | None = setting(None, '> 0')

    def check(self, path: str) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if self.token is None and value != field.default:
                raise SettingsError(f'{path}.{field.name} is {value!r} but {path}.token is None; set the token')
        if self.token is not None and (self.token.split() != [self.token] or self.token != self.token.lower()):
            raise SettingsError(f'{path}.token is {self.token!r} but must be one word in lower case, like <sks-dog>')

    def check_prompts(self, concepts: tuple[ConceptConfig, ...], path: str) -> None:
        """Raises SettingsError unless instance prompts hold the new word and class prompts do not."""
        holds = lambda prompt: self.token in prompt.lower()  # noqa: E731
        if self.token and not any(holds(concept.instance_prompt) for concept in concepts):
            raise SettingsError(f'{path}.token is {self.token!r} but no instance_prompt holds it; write it in there')
        if self.token and any(holds(concept.class_prompt) for concept in concepts):
            raise SettingsError(f'{path}.token is {self.token!r} but a class_prompt holds it too; choose another word')


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParallelConfig(Settings):
    """How the work is spread over devices, and in which numbers it is done."""

    # 'pmap': every device holds everything and takes its share of the rows; 'fsdp': parameters are sharded as well.
    mode: Literal['pmap', 'fsdp'] = 'pmap'
    # Numbers of the networks' compute; master weights, norms and loss stay float32. 'auto': bfloat16 but on CPU.
    dtype: Literal['auto', 'float32', 'bfloat16'] = 'auto'
    # 'fsdp' shards parameters of at least this many bytes; smaller ones are copied.
    fsdp_min_bytes: int = setting(4 * 2**20, '>= 0')
    # Compute the UNet's activations again in the backward pass instead of keeping them: less memory, a third more time.
    remat: bool = False
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
    lora: LoraConfig = LoraConfig()
    textual_inversion: TextualInversionConfig = TextualInversionConfig()
    parallel: ParallelConfig = ParallelConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    samples: SamplesConfig = SamplesConfig()
    # Write the trained pipeline to model/ in the run's folder; other formats are the export program's.
    export: bool = True

    def check(self, path: str) -> None:
        for index, concept in enumerate(self.concepts()):
            where = f'{path}.data.concepts[{index}]' if self.data.concepts else f'{path}.data'
            concept.check_complete(where, self.model)
        self.textual_inversion.check_prompts(self.concepts(), f'{path}.textual_inversion')
        self._check_what_trains(path)
        if (rate := self.textual_inversion.learning_rate) is not None:
            self.optimizer.check_learning_rate(rate, f'{path}.textual_inversion.learning_rate')
        for name in ('base', 'super_resolution'):
            stage, rows = getattr(self, name), self.rows_per_step(name)
            if stage.steps:
                self.optimizer.check_learning_rate(stage.learning_rate, f'{path}.{name}.learning_rate')
            if stage.accumulation > rows:
                raise SettingsError(
                    f'{path}.{name}.accumulation is {stage.accumulation} but a step has only {rows} rows to cut into '
                    f'micro-batches ({path}.{name}.batch_size, and as many class rows if there are some); set it to '
                    f'at most {rows}'
                )
        if self.data.aspect_buckets and (self.parallel.steps_per_dispatch or 1) > 1:
            raise SettingsError(
                f'{path}.parallel.steps_per_dispatch is {self.parallel.steps_per_dispatch} but '
                f'{path}.data.aspect_buckets changes the size of the pictures from step to step; set it to 1 or None'
            )

    def _check_what_trains(self, path: str) -> None:
        frozen = f'{path}.base.train_unet and {path}.base.train_text_encoder are False'
        if self.base.train_unet or self.base.train_text_encoder or not self.base.steps:
            return
        if self.textual_inversion.token is None:
            raise SettingsError(f'{frozen}, so nothing trains; set {path}.textual_inversion.token, or one of the two')
        if self.prior.weight > 0:
            raise SettingsError(f'{frozen}, so class pictures teach nothing; set {path}.prior.weight to 0')

    def rows_per_step(self, name: str) -> int:
        """Instance and class rows of one step of the stage 'base' or 'super_resolution', on all devices together."""
        with_class = self.prior.weight > 0 and (name == 'base' or self.super_resolution.with_prior)
        return getattr(self, name).batch_size * (2 if with_class else 1)

    def concepts(self) -> tuple[ConceptConfig, ...]:
        """Every subject of the run: data.concepts, or the one that `data` itself describes."""
        return self.data.concepts or (self.data,)

    def sample_prompts(self) -> tuple[str, ...]:
        """samples.prompts, or the instance and class prompt of every subject, each once."""
        prompts = [prompt for concept in self.concepts() for prompt in (concept.instance_prompt, concept.class_prompt)]
        return self.samples.prompts or tuple(dict.fromkeys(prompts))
