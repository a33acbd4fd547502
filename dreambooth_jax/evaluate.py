"""Scores runs as the paper does: is it this subject, does it follow the prompt, is the class still any of its kind?

  python -m dreambooth_jax.evaluate --model=runs/dog
  python -m dreambooth_jax.evaluate --benchmark=runs

The program generates 25 prompts of each subject with 4 images, and images of the class, with the run's model and with
the one before. It prints the scores with their 95 % intervals and writes <workdir>/scores.json, and report.html to
look at. With --benchmark, it does so for every run in a folder, each of one subject, and adds the means over subjects.
Interrupted, it goes on with the images that are missing.
"""

import dataclasses
import json
from pathlib import Path

from absl import flags

from dreambooth_jax import program
from dreambooth_jax.config import ConfigError

METRICS = ('dino', 'dinov2', 'clip', 'lpips', 'classifier')
_MODEL = program.DEFINE_path('model', None, "A run's folder.")
_BENCHMARK = program.DEFINE_path('benchmark', None, 'Instead of --model: a folder with runs, each of one subject.')
_WORKDIR = program.DEFINE_path(
    'workdir', None, 'Folder for images and scores.json; else evaluation/ in the run, or benchmark/ among the runs.'
)
_STEP = flags.DEFINE_integer('step', None, 'Checkpoint to score; else the one that sample takes.', lower_bound=1)
_METRICS = flags.DEFINE_list(
    'metrics', None, f"Of {', '.join(METRICS)}; else dino and clip, and Storybook's classifier for its own subjects."
)
_NUM_IMAGES = flags.DEFINE_integer('num_images', 4, 'Images per prompt; the paper has 4.', lower_bound=1)
_CLASS_IMAGES = flags.DEFINE_integer('class_images', 64, 'Images of the class prompt.', lower_bound=1)
_BATCH_SIZE = flags.DEFINE_integer('batch_size', None, "Images at once; else the run's.", lower_bound=1)
_STAGE = flags.DEFINE_enum('stage', 'last', ['last', 'base'], "Whose images are scored; the base stage's are quicker.")
_SIGN = flags.DEFINE_bool('sign', True, "Whether images are signed with the run's samples.c2pa_certificate, if any.")
_BASE = flags.DEFINE_bool('base', True, 'Whether the model before the run is scored too, as the floor.')
_SOURCES = {
    'dino': program.DEFINE_path('dino', None, "Encoder of dino, a folder or hub id; else Storybook's or the paper's."),
    'dinov2': program.DEFINE_path('dinov2', None, 'Encoder of dinov2; else facebook/dinov2-small.'),
    'clip': program.DEFINE_path('clip', None, 'Encoder of clip: CLIP-I and CLIP-T; else as with --dino.'),
    'lpips': program.DEFINE_path('lpips', None, 'LPIPS with AlexNet in a .safetensors file, for lpips: DIV.'),
}


def check_flags() -> None:
    """Raises ConfigError, one sentence, for flags that do not go together."""
    if (_MODEL.value is None) == (_BENCHMARK.value is None):
        given = 'both are given' if _MODEL.value else 'neither is given'
        raise ConfigError(f'either --model or --benchmark must be given but {given}; --help says what they are')
    metrics = ['dino', 'clip'] if _METRICS.value is None else _METRICS.value
    if unknown := [name for name in metrics if name not in METRICS]:
        raise ConfigError(f'--metrics has {unknown[0]!r} but each must be one of {", ".join(METRICS)}')
    if not metrics:
        raise ConfigError(f'--metrics is empty; name some of {", ".join(METRICS)}')
    if 'lpips' in metrics and _SOURCES['lpips'].value is None:
        raise ConfigError('--metrics has lpips but --lpips is not given; give its .safetensors file')
    if 'lpips' in metrics and _NUM_IMAGES.value < 2:
        raise ConfigError('--metrics has lpips, which compares images of one prompt; set --num_images to at least 2')


class Runs:
    """Reads runs as the flags say."""

    def __init__(self):
        from dreambooth_jax.evaluation.run_scores import BaseModels

        self._models = BaseModels()

    def read(self, run: Path):
        """Returns benchmark.Known: a run's subjects, and what they are measured with."""
        from dreambooth_jax.evaluation import benchmark, protocol, run_scores
        from dreambooth_jax.finetune import instance_images
        from dreambooth_jax.finetune.trained import read_config
        from dreambooth_jax.system import cpu_devices

        config = read_config(run)
        cpu_devices.use(config.parallel.cpu_devices)
        chosen = run_scores.choose(config, _METRICS.value, {name: flag.value for name, flag in _SOURCES.items()})
        # Only built-in subjects are painted at a size.
        side = self._models.side(config, _STAGE.value == 'base') if run_scores.is_built_in(config) else 0
        photos, masks = instance_images.whole(config, side), instance_images.whole_masks(config, side)
        return benchmark.Known(protocol.subjects_of(config, photos, masks), chosen)

    def open(self, run: Path, subjects):
        """Returns run_scores.Opened: a run's models, to be scored with these subjects."""
        from dreambooth_jax.evaluation import run_scores
        from dreambooth_jax.finetune.trained import read_config, read_trained
        from dreambooth_jax.generation import signed_files

        sign = signed_files.signer_of(read_config(run).samples, 'give --nosign') if _SIGN.value else None
        trained = read_trained(run, _STEP.value)
        base = self._models.of(trained.config) if _BASE.value or trained.stages else None
        options = run_scores.sampling(trained.config, trained.cascade, _BATCH_SIZE.value, _STAGE.value == 'base')
        models = {run_scores.RUN: trained.cascade}
        if trained.stages:  # the same networks with other weights, so that nothing need be compiled again
            models[run_scores.RUN] = dataclasses.replace(trained.cascade, programs=base.programs)
        if _BASE.value:
            models[run_scores.BASE] = base
        told = {'origins': trained.origins, 'metadata': trained.config.samples.metadata, 'sign': sign}
        return run_scores.Opened(models=models, subjects=subjects, options=options, **told)

    def explained(self, error: Exception) -> str | None:
        return program.explained(error)

    def seen(self, run: Path):
        """Returns the photos of a run's subjects as its model saw them."""
        from dreambooth_jax.finetune import examples
        from dreambooth_jax.finetune.trained import read_config

        return examples.seen(config := read_config(run), self._models.of(config))


def load(chosen):
    """Returns run_scores.Measures as chosen for a run."""
    from dreambooth_jax.evaluation import run_scores

    return run_scores.load_measures(chosen, num_images=_NUM_IMAGES.value, class_images=_CLASS_IMAGES.value)


def main(argv) -> None:
    del argv
    check_flags()
    from dreambooth_jax.evaluation import benchmark, page, report, run_scores
    from dreambooth_jax.system import disk

    runs = Runs()
    if _BENCHMARK.value:
        folder = Path(_BENCHMARK.value)
        workdir = Path(_WORKDIR.value) if _WORKDIR.value else folder / 'benchmark'
        found = benchmark.score_all(benchmark.run_folders(folder), workdir, runs, load)
        text, scored = report.benchmark_text(found), {folder / name: one for name, one in found['subjects'].items()}
    else:
        run = Path(_MODEL.value)
        workdir = Path(_WORKDIR.value) if _WORKDIR.value else run / 'evaluation'
        known = runs.read(run)
        measures = load(known.chosen)  # before anything is generated, so that a wrong file costs no time
        images = {title: workdir / 'images' / title for title in (run_scores.RUN, run_scores.BASE)}
        found = run_scores.score(runs.open(run, known.subjects), measures, images)
        text, scored = report.text(found), {run: found}
    workdir.mkdir(parents=True, exist_ok=True)
    with disk.writing(workdir / 'scores.json') as new:
        new.write_text(json.dumps(found, indent=1) + '\n', 'utf-8')
    page.write(workdir, scored, runs.seen, found.get('missing', {}))
    print(text, f'{workdir / "scores.json"}\n{workdir / page.FILE}', sep='\n\n')


if __name__ == '__main__':
    program.run(main)
