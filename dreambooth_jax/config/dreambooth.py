"""The settings of DreamBooth, read by train and by the programs that share its config files.

The settings of pretrain are in pretrain.py; the settings that both have in common are in training.py.

Each setting is defined once, with its default, its meaning and, where there is one, its allowed range. A file in
configs/ starts from `to_config_dict(DreamBoothConfig())` and assigns the settings that differ. A program calls
`resolve` once and passes on plain dataclasses; schema.py describes how that works and holds the error texts.
Everything random in a run is a function of `seed`.
Recipe: Ruiz et al. 2023 (DreamBooth). Where the paper is silent, the defaults are those of diffusers' training scripts.
"""

import dataclasses
from typing import Literal

from dreambooth_jax.config.built_in import STORYBOOK
from dreambooth_jax.config.data import DataConfig, SubjectConfig
from dreambooth_jax.config.evaluation import EvaluationConfig
from dreambooth_jax.config.lora import LoraConfig
from dreambooth_jax.config.schema import Config, ConfigError, path_setting, setting
from dreambooth_jax.config.training import (
    CheckpointConfig,
    ObjectiveConfig,
    OptimizerConfig,
    ParallelConfig,
    Sampler,
    SamplesConfig,
)

NO_MODEL = 'none'  # the value of super_resolution_model that leaves the second stage out

PredictionType = Literal['epsilon', 'v_prediction']
ExportFormat = Literal['diffusers', 'single_file', 'lora_peft', 'lora_kohya', 'lora_comfyui']
Timestep = int  # a timestep of a noise schedule of 1000 steps
LAST_TIMESTEP = 999


@dataclasses.dataclass(frozen=True, kw_only=True)
class PriorConfig(Config):
    """Prior preservation: training on class examples keeps the model from showing the subject for its whole class."""

    # lambda in the loss mean(instance) + lambda * mean(class). 0: no class examples.
    weight: float = setting(1.0, '>= 0')
    # What the class examples are.
    # 'images', as in the paper: class images that the frozen model generates before training.
    # 'distillation': the subject's images under the class prompt; the target is the frozen model's prediction for them.
    # No image is generated, so the settings below phrases are not used. A step costs one more forward pass of its
    # class examples (under fsdp, of all) and a copy of the denoiser in the compute dtype, unless LoRA keeps it anyway.
    kind: Literal['images', 'distillation'] = setting(
        'images', former_values={'pictures': 'images', 'prediction': 'distillation'}
    )
    # Words such as 'in the snow' that the model preserves too: whatever the kind is, every other class example is a
    # distilled one, with one of them after its class prompt, in turn. Empty, as in the paper: the class prompt alone.
    phrases: tuple[str, ...] = ()
    # Class images per class prompt. The paper uses about 1000, "but less can be used".
    num_images: int = setting(200, '> 0')
    # Folder of the class images; those that it lacks are generated into it. None: prior/ in the run's folder.
    # A folder of your own photos, one without a manifest.json, is used as it is: every photo is a class image, with its
    # caption or else the class prompt as its prompt. Nothing is generated then, and num_images and the settings below
    # are not used.
    dir: str | None = path_setting(None)
    # Denoising steps per class image.
    steps: int = setting(50, '> 0')
    # Classifier-free guidance scale of class images; 1 means no guidance. The paper gives no value.
    guidance_scale: float = setting(7.5, '>= 1')
    # Class images generated at once, on all devices together.
    batch_size: int = setting(16, '> 0')
    # 'ddpm' is the ancestral sampler, which the paper uses; the other samplers need fewer steps. 'heun' calls the
    # network twice per step.
    sampler: Sampler = 'ddpm'

    def check(self, path: str) -> None:
        if blank := [phrase for phrase in self.phrases if not phrase.strip()]:
            raise ConfigError(f'{path}.phrases has {blank[0]!r}, which is blank; leave it out')
        # The other settings of class images always have a value, which does not show whether the user has set it.
        if self.kind == 'distillation' and self.dir is not None:
            raise ConfigError(
                f"{path}.dir is {self.dir!r} but {path}.kind is 'distillation', which has no class images; leave dir "
                f"None, or set kind to 'images'"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class BaseConfig(Config):
    """Fine-tuning of the base stage."""

    # Optimizer steps; the paper takes about 1000. 0: this stage is not trained.
    steps: int = setting(1000, '>= 0')
    # Instance examples per step, on all devices together. If prior.weight > 0, each step has as many class examples in
    # addition.
    batch_size: int = setting(1, '> 0')
    # Number of micro-batches into which the examples of one step are split. They are processed one after the other and
    # their gradients are added up: the step is the same except for rounding, but needs less memory.
    gradient_accumulation_steps: int = setting(1, '> 0', formerly='accumulation')
    # The paper uses 1e-5 for Imagen and 5e-6 for Stable Diffusion.
    learning_rate: float = setting(5e-6, '> 0')
    # Train the denoiser. False: it stays frozen, as in pure textual inversion.
    train_denoiser: bool = setting(True, formerly='train_unet')
    # Train a model although it is distilled to few steps without guidance. Training on images undoes that bit by bit.
    # False: such a model is refused.
    train_distilled: bool = False
    # Train the text encoders too: the images come closer to the subject, and training needs more memory.
    train_text_encoder: bool = False
    # Learning rate of the text encoders. None: base.learning_rate.
    text_encoder_learning_rate: float | None = setting(None, '> 0')
    # How many of CLIP's last layers are skipped when a prompt is encoded, in training and in sampling; some community
    # models were trained with 1. A T5 encoder cannot skip layers.
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

    # Optimizer steps. 0: this stage is not trained.
    steps: int = setting(0, '>= 0')
    # Instance examples per step, on all devices together.
    batch_size: int = setting(1, '> 0')
    # Number of micro-batches per step, as in base.
    gradient_accumulation_steps: int = setting(1, '> 0', formerly='accumulation')
    # The paper gives no value for this stage; the learning rate of the base stage is a good start.
    learning_rate: float = setting(1e-5, '> 0')
    # Decay of the average of this stage's weights, in place of optimizer.ema_decay. None: that one.
    ema_decay: float | None = setting(None, 'in (0, 1)')
    # Lowest and highest noise augmentation of the low-resolution image in training: timesteps of the schedule
    # image_noising_scheduler, both included; one is sampled for each example. The paper lowers the augmentation for
    # fine-tuning because high levels blur fine detail.
    noise_level: tuple[Timestep, Timestep] = setting((0, 50), f'in [0, {LAST_TIMESTEP}]')
    # Side of the random crops that are trained on, in pixels of the high-resolution image. None: whole images, except
    # for the x4 upscaler of latents, which then trains on crops of 512 pixels because whole images are too large.
    crop: int | None = setting(None, '> 0')
    # Only for the x4 upscaler: how many crops are made of each image, once, so that their latents are encoded once.
    # Other second stages make new crops at every step.
    crops: int = setting(8, '> 0')
    # Train this stage with prior preservation too, of the kind prior.kind. No effect if prior.weight is 0.
    with_prior: bool = False
    # Noise augmentation in sampling, a timestep of the same schedule. It is best inside the range noise_level.
    sample_noise_level: Timestep = setting(0, f'in [0, {LAST_TIMESTEP}]')
    # Denoising steps and guidance scale of this stage in sampling. None: the values used for the base stage.
    sample_steps: int | None = setting(None, '> 0')
    sample_guidance_scale: float | None = setting(None, '>= 1')

    def check(self, path: str) -> None:
        check_noise_level(self.noise_level, path)


def check_noise_level(noise_level: tuple[int, int], path: str) -> None:
    """Checks a range of noise levels.

    Args:
      noise_level: (low, high), in timesteps.
      path: dotted name of the group that holds the setting, for the error.

    Raises:
      ConfigError: unless low <= high.
    """
    if noise_level[0] > noise_level[1]:
        raise ConfigError(f'{path}.noise_level must be (low, high) with low <= high, got {noise_level}')


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextualInversionConfig(Config):
    """Textual inversion (Gal et al. 2022): a new word for the base stage's text encoders.

    The word can be learned alone, or together with the networks that train.
    """

    # The new word, such as '<sks-dog>': in lower case, and not yet a token of the model. Tokenizers find it inside
    # longer words too. Instance prompts must hold it where the identifier would be. None: no new word.
    token: str | None = None
    # Number of tokens that the word stands for. Each is one learned row of the text encoder's token table.
    num_vectors: int = setting(1, '> 0')
    # Words, best the class noun, whose tokens give the learned rows their initial values. If there are fewer tokens
    # than rows, they are repeated in order. None: random rows with the mean and spread of the token table.
    initializer: str | None = None
    # Learning rate of the learned rows, which have no weight decay. None: 5e-4 as in diffusers' script, or
    # base.learning_rate if the optimizer is prodigy.
    learning_rate: float | None = setting(None, '> 0')

    def check(self, path: str) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if self.token is None and value != field.default:
                raise ConfigError(f'{path}.{field.name} is {value!r} but {path}.token is None; set the token')
        if self.token is not None and (self.token.split() != [self.token] or self.token != self.token.lower()):
            raise ConfigError(f'{path}.token is {self.token!r} but must be one word in lower case, like <sks-dog>')

    def check_prompts(self, subjects: tuple[SubjectConfig, ...], path: str) -> None:
        """Checks that prompts use the new word, if there is one.

        Args:
          subjects: every subject of the run.
          path: dotted name of this group of settings, for the error.

        Raises:
          ConfigError: if no instance prompt holds the word, or a class prompt holds it.
        """
        holds = lambda prompt: self.token in prompt.lower()  # noqa: E731
        if self.token and not any(holds(subject.instance_prompt) for subject in subjects):
            raise ConfigError(f'{path}.token is {self.token!r} but no instance_prompt holds it; write it in there')
        if self.token and any(holds(subject.class_prompt) for subject in subjects):
            raise ConfigError(f'{path}.token is {self.token!r} but a class_prompt holds it too; choose another word')


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunSamplesConfig(SamplesConfig):
    """Images that a DreamBooth run generates."""

    # A model that generates the samples with the run's LoRA in place of the one that trains, such as the distilled one
    # made from it, which needs few steps and no guidance (set samples.steps and samples.guidance_scale too): a folder
    # or a hub id of the same family. Scores and the exported model/ are of the model that trains. None: that one.
    model: str | None = path_setting(None)
    # Branch, tag or commit of that model of the hub, as the run's model_revision.
    model_revision: str | None = None

    def check(self, path: str) -> None:
        super().check(path)
        if self.model_revision is not None and self.model is None:
            raise ConfigError(
                f'{path}.model_revision is {self.model_revision!r} but {path}.model names no model of the hub; set '
                f'that too, or the revision to None'
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DreamBoothConfig(Config):
    """A whole DreamBooth run: class images, base stage, super-resolution stage, samples, export."""

    # Seed of everything random in a run: class images, order of images, timesteps, noise and dropout. The same seed
    # and settings give the same run. (Samples have a seed of their own.)
    seed: int = setting(0, '>= 0')
    # The model to fine-tune: 'storybook' or 'storybook-flow' (both ship with the package), a folder in diffusers'
    # layout, one .safetensors file in the original layout of Stable Diffusion, or a hub id.
    model: str = path_setting(STORYBOOK)
    # What the base stage's denoiser predicts. None: as the model's files say; single files of Stable Diffusion 2.x do
    # not always say it.
    model_prediction_type: PredictionType | None = None
    # Folder that holds tokenizer/ (and tokenizer_2/) for a model that is a single file, since such a file holds no
    # tokenizer. None: the folder of that file or, if there is no tokenizer/ in it, the published tokenizer of the hub.
    model_tokenizer_dir: str | None = path_setting(None)
    # A .safetensors file of the transformer alone, as the makers of FLUX.1, FLUX.2, Z-Image and Stable Diffusion 3
    # publish it or as ComfyUI keeps it, in place of that of `model`, a folder or a hub id. Everything else, the
    # configuration and the noise schedule too, is that of the model. None: the model's own transformer.
    model_transformer_file: str | None = path_setting(None)
    # Branch, tag or commit of a model of the hub. None: its main branch or, if this run was begun before, the commit
    # that it was begun with, which the run's config.json holds.
    model_revision: str | None = None
    # The second stage: a folder, a single file or a hub id. None: the super_resolution/ folder of the model, if it has
    # one. 'none': no second stage, whatever the model has and whatever super_resolution.steps is.
    super_resolution_model: str | None = path_setting(None)
    # Branch, tag or commit of the second stage's model, as model_revision.
    super_resolution_model_revision: str | None = None
    # Start from the weights of another run of the same model, its folder or its model/, instead of those of `model`.
    # Class images and the scores of the model before training are those of `model` all the same. None: from `model`.
    init_from: str | None = path_setting(None)
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
    samples: RunSamplesConfig = RunSamplesConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    # Write the trained pipeline to model/ in the run's folder, in diffusers' layout; export writes other formats.
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
        if self.samples.model is not None and self.lora.rank is None:
            raise ConfigError(
                f'{path}.samples.model is {self.samples.model!r} but {path}.lora.rank is None, and a network that '
                f'trains as a whole fits no other model; set {path}.lora.rank, or {path}.samples.model to None'
            )
        if (learning_rate := self.textual_inversion.learning_rate) is not None:
            self.optimizer.check_learning_rate(learning_rate, f'{path}.textual_inversion.learning_rate')
        for name in ('base', 'super_resolution'):
            stage, examples = getattr(self, name), self.examples_per_step(name)
            if stage.steps:
                self.optimizer.check_learning_rate(stage.learning_rate, f'{path}.{name}.learning_rate')
            if stage.gradient_accumulation_steps > examples:
                raise ConfigError(
                    f'{path}.{name}.gradient_accumulation_steps is {stage.gradient_accumulation_steps} but a step '
                    f'has only {examples} examples to cut into micro-batches ({path}.{name}.batch_size, and as many '
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
        """Counts the instance and class examples of one step, on all devices together.

        Args:
          name: the stage, 'base' or 'super_resolution'; the same for the methods below.
        """
        return getattr(self, name).batch_size * (2 if self.has_class_examples(name) else 1)

    def ema_decay(self, name: str) -> float | None:
        """Returns the decay of the average of the weights of stage `name`; None: there is none."""
        own = self.super_resolution.ema_decay if name == 'super_resolution' else None
        return own or self.optimizer.ema_decay

    def has_class_examples(self, name: str) -> bool:
        """Whether the stage `name` trains with prior preservation."""
        return self.prior.weight > 0 and (name == 'base' or self.super_resolution.with_prior)

    def _class_example_stages(self) -> tuple[str, ...]:
        stages = ('base', 'super_resolution')
        return tuple(name for name in stages if getattr(self, name).steps and self.has_class_examples(name))

    def class_image_stages(self) -> tuple[str, ...]:
        """Returns the stages that train on class images."""
        return tuple(name for name in self._class_example_stages() if not self.is_distilled(name))

    def has_teacher(self, name: str) -> bool:
        """Whether any class examples of stage `name` have the frozen model's prediction as target."""
        return self.is_distilled(name) or (bool(self.prior.phrases) and self.has_class_examples(name))

    def is_distilled(self, name: str) -> bool:
        """Whether all class examples of stage `name` have the frozen model's prediction as target (distillation)."""
        return self.prior.kind == 'distillation' and self.has_class_examples(name)

    def subjects(self) -> tuple[SubjectConfig, ...]:
        """Returns every subject of the run: data.subjects, or the one that `data` itself describes."""
        return self.data.subjects or (self.data,)

    def sample_prompts(self) -> tuple[str, ...]:
        """Returns the prompts that samples are generated for.

        These are samples.prompts or, if it is empty, the instance and class prompt of every subject. Repeated and empty
        prompts are left out then.
        """
        prompts = [prompt for subject in self.subjects() for prompt in (subject.instance_prompt, subject.class_prompt)]
        return self.samples.prompts or tuple(dict.fromkeys(prompt for prompt in prompts if prompt.strip()))
