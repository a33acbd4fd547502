"""Generates the class images that a run still lacks; train does the same when it starts.

  python -m dreambooth_jax.generate_prior --config=configs/dog.py --workdir=runs/dog

There are prior.num_images images per class prompt, in the folder prior.dir or, if that is None, in runs/dog/prior. If
the program was interrupted, start it again: it continues where it was.
"""

from pathlib import Path

from dreambooth_jax import program
from dreambooth_jax.config import ConfigError, DreamBoothConfig, resolve
from dreambooth_jax.system import cpu_devices

_CONFIG = program.DEFINE_config('config', 'Settings file, such as configs/dog.py.')
_WORKDIR = program.DEFINE_path('workdir', None, "The run's folder.")


def main(argv) -> None:
    del argv
    config = resolve(DreamBoothConfig, _CONFIG.value)
    cpu_devices.use(config.parallel.cpu_devices)
    if config.prior.weight == 0:
        raise ConfigError('config.prior.weight is 0, so this run needs no class images; set it above 0')
    if config.prior.kind != 'images':
        raise ConfigError(
            f"config.prior.kind is {config.prior.kind!r}, so this run needs no class images; set it to 'images'"
        )
    if not config.class_image_stages():
        raise ConfigError(
            'no stage trains on class images: set config.base.steps, or config.super_resolution.steps and '
            'config.super_resolution.with_prior'
        )
    from dreambooth_jax.finetune.pinned import read_pinned
    from dreambooth_jax.generation import class_images

    config, cascade = read_pinned(config, Path(_WORKDIR.value))
    images = class_images.class_images_of(config, cascade, _WORKDIR.value)
    folder = config.prior.dir or Path(_WORKDIR.value) / 'prior'
    prompts = dict.fromkeys(image.prompt for image in images)
    own = ', photos of your own: nothing is generated' if class_images.own_photos(config) else ''
    print(f'{len(images)} class images of {", ".join(map(repr, prompts))} in {folder}{own}')


if __name__ == '__main__':
    program.run(main, required=['config', 'workdir'])
