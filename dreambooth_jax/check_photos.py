"""Checks photos before training: too small, blurred, twice the same, on one background, cut, marked "do not train".

  python -m dreambooth_jax.check_photos --photos=photos/rex --output=photo_check
  python -m dreambooth_jax.check_photos --config=configs/cat.py --output=photo_check

One line for each finding says how much it matters: training refuses photos with an error; a warning is likely to spoil
what is learned; a note is for you to judge. With --output, photos.html shows every photo and its crops as training has
them, and photos.json holds the findings. The exit code is 1 if there is an error. No model is needed with --resolution,
or for the usual settings of hub models, and no accelerator.
"""

import json
from pathlib import Path

from absl import flags

from dreambooth_jax import program
from dreambooth_jax.config import ConfigError, DreamBoothConfig, resolve

_PHOTOS = program.DEFINE_path('photos', None, "Folder of one subject's photos; else those of --config.")
_CONFIG = program.DEFINE_config('config', 'Settings file, such as configs/dog.py: resolution, crops, buckets, steps.')
_RESOLUTION = flags.DEFINE_integer(
    'resolution', None, 'Side of the crops in pixels; else as --config says, and 512 without one.', lower_bound=8
)
_OUTPUT = program.DEFINE_path('output', None, 'Folder for photos.html and photos.json; else they are not written.')
_ENCODER = program.DEFINE_path(
    'encoder', None, 'DINO or another encoder, a folder or hub id, that tells subjects apart; else their colours do.'
)
_USUAL = 512  # pixels, of Stable Diffusion 1.5


def checked(config: DreamBoothConfig | None):
    """Returns the checked photos of every subject (data.checked_photos.CheckedSubject), and the steps in words."""
    from dreambooth_jax.data import checked_photos
    from dreambooth_jax.data.photo_checks import Reading

    embed = None
    if _ENCODER.value is not None:
        from dreambooth_jax.evaluation.encoders import load_encoder

        embed = load_encoder(_ENCODER.value).embed_images
    if config is None:
        side = _RESOLUTION.value or _USUAL
        subject = checked_photos.check_folder(_PHOTOS.value, Reading({'training': ((side, side),)}), embed)
        return [subject], 'steps: give --config to see how often its steps show each photo'
    from dreambooth_jax.finetune import photo_settings

    reading = photo_settings.reading_of(config, _RESOLUTION.value)
    subjects = photo_settings.check(config, reading, embed)
    return subjects, photo_settings.about_steps(config, sum(len(subject.photos) for subject in subjects))


def read_config() -> DreamBoothConfig | None:
    """Returns the settings of --config with the folder of --photos; None if there is no --config.

    Raises:
      ConfigError: if neither is given, or if --photos is given for several subjects.
    """
    if _CONFIG.value is None:
        if _PHOTOS.value is None:
            raise ConfigError(
                'neither --photos nor --config is given; give the folder of the photos, or a settings file'
            )
        return None
    if _PHOTOS.value is not None:
        if _CONFIG.value.data.subjects:
            raise ConfigError(
                '--photos is given but --config has several subjects; leave --photos out to check them all'
            )
        _CONFIG.value.data.update(instance_dir=_PHOTOS.value, tfds=None, tfds_split=None)
    return resolve(DreamBoothConfig, _CONFIG.value)


def main(argv) -> None:
    del argv
    from dreambooth_jax.data import checked_photos

    subjects, steps = checked(read_config())
    for subject in subjects:
        print(f'{subject.place}: {len(subject.photos)} photos')
        print(*(f'  {finding}' for finding in subject.all_findings), sep='\n', end='\n' if subject.all_findings else '')
    verdict = checked_photos.verdict(subjects)
    print(steps, verdict, sep='\n')
    if _OUTPUT.value is not None:
        from dreambooth_jax.evaluation import photo_sheet
        from dreambooth_jax.system import disk

        folder = Path(_OUTPUT.value)
        folder.mkdir(parents=True, exist_ok=True)
        photo_sheet.write(folder, subjects, verdict, steps)
        found = {'verdict': verdict, 'steps': steps, 'subjects': [subject.to_json() for subject in subjects]}
        with disk.writing(folder / 'photos.json') as new:
            new.write_text(json.dumps(found, indent=1) + '\n', 'utf-8')
        print(folder / photo_sheet.FILE, folder / 'photos.json', sep='\n')
    if any(finding.severity == 'error' for subject in subjects for finding in subject.all_findings):
        raise SystemExit(1)


if __name__ == '__main__':
    program.run(main)
