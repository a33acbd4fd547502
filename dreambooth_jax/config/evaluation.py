"""The settings of the evaluation during training, by which the best checkpoint is found and training may stop."""

import dataclasses

from dreambooth_jax.config.schema import Config, ConfigError, path_setting, setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig(Config):
    """Scores of the base stage while it trains; evaluation/best.py has the rule that chooses by them."""

    # Steps of the base stage between evaluations; the last step is always one. An evaluated step is saved too. The run
    # then exports, and trains its second stage on, the best evaluated checkpoint instead of the last one. 0: no
    # evaluation.
    every: int = setting(0, '>= 0')
    # Encoders of images, and of images and prompts: folders or hub ids. None: those that ship with the package if the
    # model is 'storybook', else the paper's, facebook/dino-vits16 and openai/clip-vit-base-patch32.
    dino: str | None = path_setting(None)
    clip: str | None = path_setting(None)
    # How many of the paper's 25 prompts are asked, evenly spread over them, and how many images of each. Prompts differ
    # more than images of one prompt do, so that more prompts tell more than more images.
    num_prompts: int = setting(12, 'in [1, 25]')
    num_images: int = setting(1, '> 0')
    # Images of the class prompt, by which the drift of the class is measured.
    class_images: int = setting(4, '> 0')
    # Denoising steps per image; None: samples.steps. Sampler, guidance scale and batch size are those of samples.
    steps: int | None = setting(None, '> 0')
    # Seed of the images. All evaluations start from the same noise, so that their differences are the training's.
    seed: int = setting(0, '>= 0')
    # How far images of the class may have moved towards the subject's photos, as a share of the way from where they
    # were before training (0) to the photos' likeness among themselves (1). A checkpoint beyond it is not the best one
    # if any other is within.
    max_drift: float = setting(0.3, '>= 0')
    # Stop the base stage when so many evaluations in a row have brought no better checkpoint; base.steps is then the
    # most that is trained. None: train all steps.
    patience: int | None = setting(None, '> 0')

    def check(self, path: str) -> None:
        # Only these show whether the user has set them; the others always have a value.
        for name in ('dino', 'clip', 'patience'):
            value = getattr(self, name)
            if value is not None and not self.every:
                raise ConfigError(
                    f'{path}.{name} is {value!r} but {path}.every is 0, so nothing is evaluated; set every to a number '
                    f'of steps, or {name} to None'
                )
