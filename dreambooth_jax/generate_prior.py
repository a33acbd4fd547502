"""Draws the class pictures of a run until all are there; train does the same when it starts.

  python -m dreambooth_jax.generate_prior --config=configs/dog.py --workdir=runs/dog

They are prior.num_images per class prompt, in prior.dir or else runs/dog/prior. Start it again to go on after a break.
"""

from pathlib import Path

from dreambooth_jax import program
from dreambooth_jax.config import DreamBoothConfig, SettingsError, resolve

_CONFIG = program.DEFINE_config('config', 'Settings file, such as configs/dog.py.')
_WORKDIR = program.DEFINE_path('workdir', None, "The run's folder.")


def main(argv) -> None:
    del argv
    config = resolve(DreamBoothConfig, _CONFIG.value)
    if config.prior.weight == 0:
        raise SettingsError('config.prior.weight is 0, so this run needs no class pictures; set it above 0')
    if config.prior.kind != 'pictures':
        raise SettingsError(
            f"config.prior.kind is {config.prior.kind!r}, so this run needs no class pictures; set it to 'pictures'"
        )
    if not config.class_picture_stages():
        raise SettingsError(
            'no stage trains on class pictures: set config.base.steps, or config.super_resolution.steps and '
            'config.super_resolution.with_prior'
        )
    from dreambooth_jax.generation import prior_images
    from dreambooth_jax.tuning.pinned import read_pinned

    config, cascade = read_pinned(config, Path(_WORKDIR.value))
    images = prior_images.prior_images_of(config, cascade, _WORKDIR.value)
    folder = config.prior.dir or Path(_WORKDIR.value) / 'prior'
    prompts = dict.fromkeys(image.prompt for image in images)
    own = ', photos of your own: nothing is drawn' if prior_images.own_photos(config) else ''
    print(f'{len(images)} class pictures of {", ".join(map(repr, prompts))} in {folder}{own}')


if __name__ == '__main__':
    program.run(main, required=['config', 'workdir'])
