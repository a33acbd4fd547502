"""Every setting of DreamBooth, for train and its companions; those of pretrain are in pretrain.py, those of both in
training.py.

Each setting stands here once, with its default, its meaning and, where it has one, its legal range. A file in configs/
starts from `to_config_dict(DreamBoothConfig())` and changes what differs; programs call `resolve` once and pass on
plain dataclasses. How that works and what the errors say: schema.py. Everything random is a function of `seed`.
Recipe: Ruiz et al. 2023 (DreamBooth); where the paper is silent, defaults are those of diffusers' training scripts.
"""

import dataclasses
from typing import Literal

from dreambooth_jax.config.schema import Config, ConfigError, path_setting, setting
from dreambooth_jax.config.training import (
    CheckpointConfig,
    ObjectiveConfig,
    OptimizerConfig,
    ParallelConfig,
    Sampler,
    SamplesConfig,
)

STORYBOOK = 'storybook'  # the model that ships with the package
# How it generates best: chosen by experiments/storybook_base.
STORYBOOK_SAMPLING = {'steps': 25, 'guidance_scale': 4.0, 'sampler': 'ddpm'}
STORYBOOK_ENLARGING = {'sample_steps': 15, 'sample_guidance_scale': 1.0}  # its second stage
NO_MODEL = 'none'  # super_resolution_model: leave the second stage out

PredictionType = Literal['epsilon', 'v_prediction']
ExportFormat = Literal['diffusers', 'single_file', 'lora_peft', 'lora_kohya']
Timestep = int  # of a noise schedule of 1000 steps
LAST_TIMESTEP = 999


@dataclasses.dataclass(frozen=True, kw_only=True)
class SubjectConfig(Config):
    """One subject: where its images are, and what it and its class are called."""

    # Folder with 3-5 images of the subject. A text file beside an image (dog.txt beside dog.jpg) is its caption and
    # replaces instance_prompt for that image. None: the Storybook subject's built-in images.
    instance_dir: str | None = path_setting(None)
    # Name of a built-in Storybook subject, one of the dataset's 30; only used while instance_dir is None.
    subject: str | None = None
    # "a [identifier] [class noun]", such as 'a sks dog'; the identifier is a rare token (program find_identifier).
    instance_prompt: str = ''
    # "a [class noun]", such as 'a dog'. May be left empty where prior.weight is 0.
    class_prompt: str = ''

    def check_complete(self, path: str, model: str, *, uses_class: bool) -> None:
        """Raises ConfigError if something is missing that training on `model` needs.

        Args:
          uses_class: whether class examples train, which read the class prompt.
        """
        if self.instance_dir is None and model != STORYBOOK:
            raise ConfigError(
                f"{path}.instance_dir must be given when config.model is {model!r}: the folder of the subject's "
                f'images (only {STORYBOOK!r} has built-in subjects)'
            )
        if self.instance_dir is None and self.subject is None:
            raise ConfigError(f'{path}.instance_dir (a folder) or {path}.subject (a built-in one) must be given')
        if not self.instance_prompt.strip():
            raise ConfigError(f"{path}.instance_prompt must be given, for example 'a sks dog'")
        if uses_class and not self.class_prompt.strip():
            raise ConfigError(
                f"{path}.class_prompt must be given, for example 'a dog', or config.prior.weight be 0 to train without "
                f'the class'
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig(SubjectConfig):
    """The subject's images, and how they are read."""

    # Side of the square training images, in pixels. None: the model's own sample size.
    resolution: int | None = setting(None, '> 0')
    # Mirror half of the examples. Off: it would teach that a badge may sit on either side, and reverses lettering.
    random_flip: bool = False
    # Crops kept of each image: the centre one, then random ones. 1: the centre alone.
    crops: int = setting(1, '> 0')
    # Keep the ratio of width and height: each photo is brought to the nearest of some sizes of about resolution^2
    # pixels, from 1:2 to 2:1, and a step takes all its examples from one size. Every size in use has its own compiled
    # step and its own copy of the class images in the device's memory, fitted to it. (The x4 upscaler trains on square
    # crops from all over the photo, whatever its ratio.) False: the square in the middle of every photo.
    aspect_buckets: bool = False
    # Several subjects in one run, instead of the four settings above, which then stay empty.
    subjects: tuple[SubjectConfig, ...] = setting((), formerly='concepts')

    def check(self, path: str) -> None:
        if self.subjects:
            for field in dataclasses.fields(SubjectConfig):
                if getattr(self, field.name):
                    raise ConfigError(
                        f'{path}.{field.name} is {getattr(self, field.name)!r} but {path}.subjects names the subjects '
                        f'of this run; leave one of the two empty'
                    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PriorConfig(Config):
    """Prior preservation: what the frozen model makes of the class keeps the class from becoming the subject."""

    # lambda of the loss mean(instance) + lambda * mean(class); 0 trains without class examples.
    weight: float = setting(1.0, '>= 0')
    # What class examples are. 'images', the paper's: class images that the frozen model generates before training.
    # 'distillation': the subject's images under the class prompt, where the model is held to what the frozen model
    # predicts. Nothing is generated, so the settings below have no use; a step takes another forward pass of its class
    # examples (under fsdp, of all examples) and, unless adapters leave the frozen UNet in place, a copy of it in the
    # compute dtype.
    kind: Literal['images', 'distillation'] = setting(
        'images', former_values={'pictures': 'images', 'prediction': 'distillation'}
    )
    # Class images per class prompt; the paper takes about 1000, "but less can be used".
    num_images: int = setting(200, '> 0')
    # Folder of the class images, filled where it holds too few. None: prior/ in the run's folder. A folder of photos
    # of one's own, which has no manifest.json: all of them are the class images, under their captions or else the
    # class prompt, none is generated, and the settings below and num_images have no use.
    dir: str | None = path_setting(None)
    # Denoise steps of a class image.
    steps: int = setting(50, '> 0')
    # Classifier-free guidance of class images; 1 is none. The paper is silent.
    guidance_scale: float = setting(7.5, '>= 1')
    # Class images generated at once, on all devices together.
    batch_size: int = setting(16, '> 0')
    # 'ddpm' is the ancestral sampler, the paper's choice; the others need fewer steps.
    sampler: Sampler = 'ddpm'

    def check(self, path: str) -> None:
        # The other settings of class images stand at defaults that say nothing of whether they were set.
        if self.kind == 'distillation' and self.dir is not None:
            raise ConfigError(
                f"{path}.dir is {self.dir!r} but {path}.kind is 'distillation', which has no class images to keep; "
                f"leave dir None, or set kind to 'images'"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class BaseConfig(Config):
    """Fine-tuning of the base stage."""

    # Optimiser steps; the paper takes about 1000. 0 leaves the stage as it is.
    steps: int = setting(1000, '>= 0')
    # Instance examples per step, on all devices together; as many class examples come on top while prior.weight > 0.
    batch_size: int = setting(1, '> 0')
    # Micro-batches that a step's examples are cut into, one after the other: the same step in less memory, rounding
    # aside.
    gradient_accumulation_steps: int = setting(1, '> 0', formerly='accumulation')
    # The paper: 1e-5 for Imagen, 5e-6 for Stable Diffusion.
    learning_rate: float = setting(5e-6, '> 0')
    # False: the UNet is frozen, as in textual inversion alone.
    train_denoiser: bool = setting(True, formerly='train_unet')
    # Train the text encoder along: closer to the subject, more memory.
    train_text_encoder: bool = False
    # Its own learning rate. None: that of the UNet.
    text_encoder_learning_rate: float | None = setting(None, '> 0')

    # How many of CLIP's last layers are left out when prompts are read, in training and in generating; some community
    # models were trained with 1. T5 has none to skip.
    clip_skip: int = setting(0, '>= 0')

    def check(self, path: str) -> None:
        if self.text_encoder_learning_rate is not None and not self.train_text_encoder:
            raise ConfigError(
                f'{path}.text_encoder_learning_rate is {self.text_encoder_learning_rate} but '
                f'{path}.train_text_encoder is False; set that to True, or the learning rate to None'
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SuperResolutionConfig(Config):
    """Fine-tuning of the super-resolution stage, which the paper calls essential for most subjects."""

    # Optimiser steps. 0 leaves the stage as it is.
    steps: int = setting(0, '>= 0')
    # Instance examples per step, on all devices together.
    batch_size: int = setting(1, '> 0')
    # As in BaseConfig.
    gradient_accumulation_steps: int = setting(1, '> 0', formerly='accumulation')
    # The paper gives none for this stage; that of the base stage is a good start.
    learning_rate: float = setting(1e-5, '> 0')
    # Lowest and highest noise augmentation of the low image in training: times of the image_noising schedule, both
    # included, sampled per example. The paper lowers it for fine-tuning; high levels blur fine detail.
    noise_level: tuple[Timestep, Timestep] = setting((0, 50), f'in [0, {LAST_TIMESTEP}]')
    # Train on random crops of this side, in pixels of the high image. None: on whole images; the x4 upscaler of
    # latents, whose whole images are too large, on crops of 512.
    crop: int | None = setting(None, '> 0')
    # The x4 upscaler: crops kept of each image, their latents encoded once; other stages crop anew at every step.
    crops: int = setting(8, '> 0')
    # Prior preservation in this stage too, of the same kind; nothing to do while prior.weight is 0.
    with_prior: bool = False
    # The augmentation when samples are generated, a time of the same schedule; best inside noise_level.
    sample_noise_level: Timestep = setting(0, f'in [0, {LAST_TIMESTEP}]')
    # Denoise steps and guidance when images are generated. None: those of the base stage.
    sample_steps: int | None = setting(None, '> 0')
    sample_guidance_scale: float | None = setting(None, '>= 1')

    def sampling_options(self) -> dict[str, int | float | None]:
        """How this stage generates, as options of Cascade.generate."""
        return {
            'noise_level': self.sample_noise_level,
            'super_resolution_steps': self.sample_steps,
            'super_resolution_guidance_scale': self.sample_guidance_scale,
        }

    def check(self, path: str) -> None:
        check_noise_level(self.noise_level, path)


def check_noise_level(noise_level: tuple[int, int], path: str) -> None:
    """Raises ConfigError unless low <= high."""
    if noise_level[0] > noise_level[1]:
        raise ConfigError(f'{path}.noise_level must be (low, high) with low <= high, got {noise_level}')


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraConfig(Config):
    """Low-rank adapters (Hu et al. 2021) instead of whole networks, in every stage that trains."""

    # Inner width of the adapters, usually 4 to 64. None: whole networks train.
    rank: int | None = setting(None, '> 0')
    # The adapters' output is multiplied by alpha / rank. None: as rank, a factor of 1.
    alpha: float | None = setting(None, '> 0')
    # Which layers, as regular expressions of whole dotted paths such as '.*attn2\.to_k'; convolutions too. Each must
    # match in one of the networks that train. Empty: the attention projections.
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
                raise ConfigError(
                    f'{path}.{name} is {value!r} but {path}.rank is None, so whole networks train; set the rank, or '
                    f'leave {path}.{name} out'
                )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextualInversionConfig(Config):
    """A new word for the base stage's text encoders (Gal et al. 2022), alone or beside whatever else trains."""

    # The word, in lower case and no token of the model yet, such as '<sks-dog>'; tokenizers find it inside other words
    # too. It stands in instance prompts in the identifier's place. None: no new word.
    token: str | None = None
    # Tokens that it stands for, each a learned row of the text encoder's token table.
    num_vectors: int = setting(1, '> 0')
    # What its rows start as: those of these words' tokens, best the class noun; row i takes token i, over and over.
    # None: rows sampled at random, like those of the table.
    initializer: str | None = None
    # Of the rows, which never decay. None: 5e-4 as in diffusers' script, or base.learning_rate with prodigy.
    learning_rate: float | None = setting(None, '> 0')

    def check(self, path: str) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if self.token is None and value != field.default:
                raise ConfigError(f'{path}.{field.name} is {value!r} but {path}.token is None; set the token')
        if self.token is not None and (self.token.split() != [self.token] or self.token != self.token.lower()):
            raise ConfigError(f'{path}.token is {self.token!r} but must be one word in lower case, like <sks-dog>')

    def check_prompts(self, subjects: tuple[SubjectConfig, ...], path: str) -> None:
        """Raises ConfigError unless instance prompts hold the new word and class prompts do not."""
        holds = lambda prompt: self.token in prompt.lower()  # noqa: E731
        if self.token and not any(holds(subject.instance_prompt) for subject in subjects):
            raise ConfigError(f'{path}.token is {self.token!r} but no instance_prompt holds it; write it in there')
        if self.token and any(holds(subject.class_prompt) for subject in subjects):
            raise ConfigError(f'{path}.token is {self.token!r} but a class_prompt holds it too; choose another word')


@dataclasses.dataclass(frozen=True, kw_only=True)
class DreamBoothConfig(Config):
    """A whole DreamBooth run: class images, base stage, super-resolution stage, samples, export."""

    # Of images, times, noise and dropout: the same seed gives the same run.
    seed: int = setting(0, '>= 0')
    # 'storybook' (ships with the package), a folder in diffusers' layout, one .safetensors file in the original layout
    # of Stable Diffusion, or a hub id.
    model: str = path_setting(STORYBOOK)
    # What the base model's UNet predicts. None: what the model says; single files of Stable Diffusion 2.x may not.
    model_prediction_type: PredictionType | None = None
    # Folder that holds tokenizer/ (and tokenizer_2/) for a model that is a single file, which has none. None: the
    # folder of the file or, where that has no tokenizer/, the published one from the hub.
    model_tokenizer_dir: str | None = path_setting(None)
    # Branch, tag or commit of a model of the hub. None: its main branch, or the commit that this run was begun with:
    # config.json holds the commit that was read.
    model_revision: str | None = None
    # Second stage: a folder, a single file or a hub id. None: the model's own super_resolution/ folder if it has one.
    # 'none': no second stage even then, whatever super_resolution.steps says.
    super_resolution_model: str | None = path_setting(None)
    # As model_revision.
    super_resolution_model_revision: str | None = None
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
        if self.super_resolution_model_revision is not None and self.super_resolution_model in (None, NO_MODEL):
            raise ConfigError(
                f'{path}.super_resolution_model_revision is {self.super_resolution_model_revision!r} but '
                f'{path}.super_resolution_model names no model of the hub; set that too, or the revision to None'
            )
        for index, subject in enumerate(self.subjects()):
            where = f'{path}.data.subjects[{index}]' if self.data.subjects else f'{path}.data'
            subject.check_complete(where, self.model, uses_class=bool(self._class_example_stages()))
        self.textual_inversion.check_prompts(self.subjects(), f'{path}.textual_inversion')
        self._check_what_trains(path)
        if (learning_rate := self.textual_inversion.learning_rate) is not None:
            self.optimizer.check_learning_rate(learning_rate, f'{path}.textual_inversion.learning_rate')
        for name in ('base', 'super_resolution'):
            stage, examples = getattr(self, name), self.examples_per_step(name)
            if stage.steps:
                self.optimizer.check_learning_rate(stage.learning_rate, f'{path}.{name}.learning_rate')
            if stage.gradient_accumulation_steps > examples:
                raise ConfigError(
                    f'{path}.{name}.gradient_accumulation_steps is {stage.gradient_accumulation_steps} but a step '
                    f'has only {examples} rows to cut into micro-batches ({path}.{name}.batch_size, and as many '
                    f'class examples if there are some); set it to at most {examples}'
                )
        if self.data.aspect_buckets and (self.parallel.steps_per_dispatch or 1) > 1:
            raise ConfigError(
                f'{path}.parallel.steps_per_dispatch is {self.parallel.steps_per_dispatch} but '
                f'{path}.data.aspect_buckets changes the size of the images from step to step; set it to 1 or None'
            )

    def _check_what_trains(self, path: str) -> None:
        frozen = f'{path}.base.train_denoiser and {path}.base.train_text_encoder are False'
        if self.base.train_denoiser or self.base.train_text_encoder or not self.base.steps:
            return
        if self.textual_inversion.token is None:
            raise ConfigError(f'{frozen}, so nothing trains; set {path}.textual_inversion.token, or one of the two')
        if self.prior.weight > 0:
            raise ConfigError(f'{frozen}, so class images teach nothing; set {path}.prior.weight to 0')

    def examples_per_step(self, name: str) -> int:
        """Instance and class examples of one step of the stage 'base' or 'super_resolution', on all devices
        together."""
        return getattr(self, name).batch_size * (2 if self.has_class_examples(name) else 1)

    def has_class_examples(self, name: str) -> bool:
        """Whether that stage trains with prior preservation."""
        return self.prior.weight > 0 and (name == 'base' or self.super_resolution.with_prior)

    def _class_example_stages(self) -> tuple[str, ...]:
        stages = ('base', 'super_resolution')
        return tuple(name for name in stages if getattr(self, name).steps and self.has_class_examples(name))

    def class_image_stages(self) -> tuple[str, ...]:
        """The stages that train on class images."""
        return tuple(name for name in self._class_example_stages() if not self.is_distilled(name))

    def is_distilled(self, name: str) -> bool:
        """Whether class examples of that stage show no class images but are held to the frozen model's prediction."""
        return self.prior.kind == 'distillation' and self.has_class_examples(name)

    def subjects(self) -> tuple[SubjectConfig, ...]:
        """Every subject of the run: data.subjects, or the one that `data` itself describes."""
        return self.data.subjects or (self.data,)

    def sample_prompts(self) -> tuple[str, ...]:
        """samples.prompts, or the instance and class prompt of every subject, each once; empty ones are left out."""
        prompts = [prompt for subject in self.subjects() for prompt in (subject.instance_prompt, subject.class_prompt)]
        return self.samples.prompts or tuple(dict.fromkeys(prompt for prompt in prompts if prompt.strip()))
