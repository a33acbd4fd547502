"""When the choice of the base stage's checkpoint stands.

Settings of the evaluation may change at any time. While only the base stage has trained, the choice follows them: what
is still there is evaluated again (evaluation/score_checkpoints.py). Once the base stage has ended and the second one
has a checkpoint, it does not: the second stage was trained on the checkpoint that was chosen, which is then neither
evaluated again nor exchanged, and a base stage that `patience` has ended does not go on. Only more steps, by --extend
or config.base.steps, open the choice again; the second stage is kept as it is then, and the user is told.
"""

from pathlib import Path

from absl import logging

from dreambooth_jax.config import DreamBoothConfig
from dreambooth_jax.finetune.extension import Extension
from dreambooth_jax.generation.cascade import BASE, SUPER_RESOLUTION, Cascade
from dreambooth_jax.training import best_checkpoint, run
from dreambooth_jax.training.callbacks import Chosen

# Settings that decide what is chosen.
_CHOOSING = ('evaluation', 'samples.steps', 'samples.guidance_scale', 'samples.sampler')


def standing(config: DreamBoothConfig, workdir: Path, extension: Extension) -> Chosen | None:
    """Returns the choice of the base stage that stands; None: there is none, or the base stage is to go on.

    Warns of settings that have changed and would have led to another choice.

    Args:
      config: the settings, with the steps of the extension.
      extension: by which the base stage has more steps than its settings file says.

    Raises:
      ConfigError: if best.json or the file of the run's settings is damaged.
    """
    newest = max(run.checkpoints(workdir, BASE), default=0)
    if not newest or not run.checkpoints(workdir, SUPER_RESOLUTION):
        return None
    found = best_checkpoint.read(workdir) or {'step': None}
    had_enough = found.get('enough') == newest and newest > extension.since
    if newest < config.base.steps and not had_enough:
        return None
    if found['step'] not in (None, *run.checkpoints(workdir, BASE)):
        return None  # it was deleted by hand: another one has to be chosen
    changed = run.changed(config, workdir, _CHOOSING)
    before = changed.get('evaluation.every', (config.evaluation.every,))[0]
    if changed and (before or config.evaluation.every):
        told = ', '.join(f'config.{name} is {now!r} and was {was!r}' for name, (was, now) in changed.items())
        logging.warning(
            '%s; but the second stage was trained on checkpoint %d of the base stage: this choice stands, and nothing '
            'is evaluated again',
            told,
            found['step'] or newest,
        )
    return Chosen(found['step'])


def told(config: DreamBoothConfig, workdir: Path, cascade: Cascade, chosen: Chosen | None) -> str | None:
    """Says in a line what stands, or what becomes of the trained second stage when the base stage goes on.

    Args:
      chosen: what `standing` returned.

    Returns:
      None if no second stage has been trained, or the last checkpoint stands as in every run that is not evaluated.
    """
    if chosen is not None:
        if chosen.best is None:
            return None
        return f'checkpoint {chosen.best} of the base stage stands: the second stage was trained on it'
    newest = {stage: max(run.checkpoints(workdir, stage), default=0) for stage in (BASE, SUPER_RESOLUTION)}
    steps = config.super_resolution.steps
    if not all(newest.values()) or cascade.super_resolution is None or not steps:
        return None
    line = f'the base stage goes on from step {newest[BASE]}, the second stage '
    if newest[SUPER_RESOLUTION] < steps:
        line += f'then from its step {newest[SUPER_RESOLUTION]}'
    else:
        line += (
            f'is trained already and stays as it is; config.super_resolution.steps above {newest[SUPER_RESOLUTION]} '
            f'trains it on'
        )
    own = cascade.super_resolution.text_encoders  # if it has some, it does not read prompts with those of the base
    if not own and (config.base.train_text_encoder or config.textual_inversion.token is not None):
        line += '. It has learned from prompts as the text encoder read them until now'
    return line
