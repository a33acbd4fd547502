"""Scores a run as the paper does: is it this subject, does it follow the prompt, is the class still any of its kind?

  python -m dreambooth_jax.evaluate --model=runs/dog

The program generates 25 prompts of each subject with 4 images, and images of the class, with the run's model and with
the one before. It prints the scores with their 95 % intervals and writes <workdir>/scores.json. Interrupted, it goes on
with the images that are missing.
"""

import dataclasses
import json
from pathlib import Path

from absl import flags

from dreambooth_jax import program
from dreambooth_jax.config import ConfigError

METRICS = ('dino', 'dinov2', 'clip', 'lpips')
_MODEL = program.DEFINE_path('model', None, "A run's folder.")
_WORKDIR = program.DEFINE_path('workdir', None, 'Folder for images and scores.json; else evaluation/ in the run.')
_STEP = flags.DEFINE_integer('step', None, 'Checkpoint to score; else the newest.', lower_bound=1)
_METRICS = flags.DEFINE_list('metrics', 'dino,clip', f'What to score with, of {", ".join(METRICS)}.')
_NUM_IMAGES = flags.DEFINE_integer('num_images', 4, 'Images per prompt; the paper has 4.', lower_bound=1)
_CLASS_IMAGES = flags.DEFINE_integer('class_images', 64, 'Images of the class prompt.', lower_bound=1)
_BATCH_SIZE = flags.DEFINE_integer('batch_size', None, "Images at once; else the run's.", lower_bound=1)
_BASE = flags.DEFINE_bool('base', True, 'Whether the model before the run is scored too, as the floor.')
_DINO = program.DEFINE_path('dino', 'facebook/dino-vits16', 'Encoder of dino: a folder or a hub id.')
_DINOV2 = program.DEFINE_path('dinov2', 'facebook/dinov2-small', 'Encoder of dinov2.')
_CLIP = program.DEFINE_path('clip', 'openai/clip-vit-base-patch32', 'Encoder of clip: CLIP-I and CLIP-T.')
_LPIPS = program.DEFINE_path('lpips', None, 'LPIPS with AlexNet in a .safetensors file, for lpips: DIV.')


def evaluators() -> tuple[list, dict[str, str]]:
    """The evaluators that --metrics names, and the fingerprint of each network that they use."""
    from dreambooth_jax.evaluation import encoders, evaluator

    counts = {'num_images': _NUM_IMAGES.value, 'class_images': _CLASS_IMAGES.value}
    found, used = [], {}
    for name, source in (('dino', _DINO.value), ('dinov2', _DINOV2.value), ('clip', _CLIP.value)):
        if name in _METRICS.value:
            encoder = encoders.load_encoder(source)
            used[name] = encoder.fingerprint
            names = {'name': 'clip_i', 'prompt_name': 'clip_t'} if name == 'clip' else {'name': name}
            found.append(evaluator.Likeness(encoder=encoder, **names, **counts))
    if 'lpips' in _METRICS.value:
        distance = encoders.load_lpips(_LPIPS.value)
        used['lpips'] = distance.fingerprint
        found.append(evaluator.Diversity(distance=distance, num_images=_NUM_IMAGES.value))
    return found, used


def check_flags() -> None:
    """Raises ConfigError, one sentence, for flags that do not go together."""
    if unknown := [name for name in _METRICS.value if name not in METRICS]:
        raise ConfigError(f'--metrics has {unknown[0]!r} but each must be one of {", ".join(METRICS)}')
    if not _METRICS.value:
        raise ConfigError(f'--metrics is empty; name some of {", ".join(METRICS)}')
    if 'lpips' in _METRICS.value and _LPIPS.value is None:
        raise ConfigError('--metrics has lpips but --lpips is not given; give its .safetensors file')
    if 'lpips' in _METRICS.value and _NUM_IMAGES.value < 2:
        raise ConfigError('--metrics has lpips, which compares images of one prompt; set --num_images to at least 2')


def evaluate(run: Path, workdir: Path) -> dict:
    """Scores a run; returns the content of scores.json. Images are generated where they are missing in `workdir`."""
    from dreambooth_jax.evaluation import protocol, scores
    from dreambooth_jax.evaluation.evaluator import Likeness, summary
    from dreambooth_jax.finetune.trained import read_trained
    from dreambooth_jax.generation.cascade import Cascade
    from dreambooth_jax.generation.options import SamplingOptions
    from dreambooth_jax.training import memory

    trained = read_trained(run, _STEP.value)
    config, cascade = trained.config, trained.cascade
    options = SamplingOptions.of_samples(config.samples, config.super_resolution)
    options = dataclasses.replace(options, batch_size=_BATCH_SIZE.value or options.batch_size)
    side = cascade.base_size if cascade.super_resolution is None else cascade.super_resolution_size
    subjects = protocol.subjects_of(config, side)
    chosen, used = evaluators()  # before anything is generated, so that a wrong file costs no time
    models = {'run': cascade} | ({'base': Cascade.of(config)} if _BASE.value else {})
    measured = {}
    for title, model in models.items():
        generate = protocol.Album(model, options, workdir / 'images' / title, title)
        with memory.explained('images are generated', ['--batch_size=1'], kept=True):
            measured[title] = {
                subject.name: summary({k: v for one in chosen for k, v in one(generate, subject).items()})
                for subject in subjects
            }
        model.release()
    ceilings = {
        one.name: {subject.name: scores.ceiling(one.encoder.embed_images(subject.photos)) for subject in subjects}
        for one in chosen
        if isinstance(one, Likeness)
    }
    return {
        'models': measured,
        'ceiling': ceilings,
        'weights': trained.origins,
        'encoders': used,
        'images_per_prompt': _NUM_IMAGES.value,
        'class_images': _CLASS_IMAGES.value,
        'sampling': vars(options),
    }


def main(argv) -> None:
    del argv
    check_flags()
    from dreambooth_jax.evaluation import report
    from dreambooth_jax.system import disk

    run = Path(_MODEL.value)
    workdir = Path(_WORKDIR.value) if _WORKDIR.value else run / 'evaluation'
    found = evaluate(run, workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    with disk.writing(workdir / 'scores.json') as new:
        new.write_text(json.dumps(found, indent=1) + '\n', 'utf-8')
    print(report.text(found), f'{workdir / "scores.json"}', sep='\n\n')


if __name__ == '__main__':
    program.run(main, required=['model'])
