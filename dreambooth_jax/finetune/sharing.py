"""What of a run goes to the Hugging Face hub: what was exported, its model card, and examples of what it generates.

Nothing else goes there. Photos and class images stay here, and an example is an image of the run's samples that says in
its file that a model has generated it. Models of people go there only with the consent that their card tells.

    README.md                          the model card, whose head the hub reads and whose gallery shows the examples
    images/000_00.png ...              the examples: the first sample of each prompt of the subject, as the run wrote it
    pytorch_lora_weights.safetensors   adapters for diffusers, under the name that its load_lora_weights looks for
    NAME.safetensors                   other files, under their own names
    unet/ ...                          of a pipeline folder, all that it holds

Sources: huggingface.co/docs/hub/model-cards and huggingface.co/docs/hub/model-cards-components (gallery); diffusers,
loaders/lora_base.py.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from dreambooth_jax.config import ConfigError, DreamBoothConfig
from dreambooth_jax.data import provenance, training_marks
from dreambooth_jax.data.decode import ImageError, read_file
from dreambooth_jax.data.fingerprints import file_hash
from dreambooth_jax.finetune import consent, instance_images, model_card
from dreambooth_jax.finetune.model_card import Example, Export
from dreambooth_jax.generation.cascade import STAGES
from dreambooth_jax.generation.class_manifest import MANIFEST
from dreambooth_jax.generation.sample_grid import images_of
from dreambooth_jax.training import inputs
from dreambooth_jax.weights import files, hub, hub_push, lora_files
from dreambooth_jax.weights.hub_push import Repository

MOST_EXAMPLES = 8
_PARTS = (files.SUFFIX, *hub.TOKENIZER_SUFFIXES, '.md')  # what the files of a pipeline folder end with


def check(config: DreamBoothConfig, name: str, private: bool) -> None:
    """Checks that a run's model may go to a repository, before it is exported.

    Args:
      config: the run's settings.
      name: the repository, 'owner/name'.
      private: whether only its owner is to see it.

    Raises:
      ConfigError: if it is a model of people without consent, or the repository holds something else or is public.
      ImageError: if one of its photos is marked "do not train" and no consent is told.
      WeightsError: if there is no token, it may not write, or the hub cannot be reached.
    """
    consent.check(config)
    if config.data.consent is None:
        training_marks.refuse(_photos_that_are_here(config), None)
    _check_repository(config, hub_push.look(name), private)


def _photos_that_are_here(config: DreamBoothConfig) -> list[Path]:
    try:
        return [file.path for listed in instance_images.photos(config).values() for file in listed]
    except (ImageError, ConfigError):  # the folder was moved since it was trained on, when train has looked
        return []


def _check_repository(config: DreamBoothConfig, there: Repository, private: bool) -> None:
    base = Export.base_of(config)
    if there.card is not None and model_card.MADE_BY not in there.card:
        raise ConfigError(
            f'{there.name} on the hub has a model card that this program has not written; give another name with '
            f'--push_to'
        )
    if there.card is not None and [one.lower() for one in there.base_models] != ([base.lower()] if base else []):
        before = ', '.join(there.base_models) or 'one that is not of the hub'
        raise ConfigError(
            f'{there.name} on the hub holds a model whose base is {before}, but the base of this one is '
            f'{base or config.model}; give another name with --push_to'
        )
    if private and there.is_there and not there.is_private:
        raise ConfigError(
            f'{there.name} on the hub is public; make it private on its page first, or say with --nopush_private that '
            f'everybody may see what is pushed'
        )


def push(export: Export, written: Sequence[Path], name: str, *, steps: Mapping[str, int], private: bool) -> str:
    """Uploads what was exported, with its card and examples; `check` comes first.

    Args:
      export: what its card is about.
      written: the folder, or the files, that were exported.
      name: the repository, 'owner/name'.
      steps: stage -> the step of its checkpoint that was exported.
      private: whether a new repository is private.

    Returns:
      A line of text: where it is, and what was compared.

    Raises:
      ConfigError: if something among the files or the samples is nothing to be shown.
      WeightsError: as in hub_push.push.
    """
    named = _of_folder(written[0]) if export.file is None else _of_files(export.form, written)
    shown = examples(export.config, export.workdir, steps)
    card = model_card.text(export.in_repository(name, _in_repository(export.form, export.file), shown))
    contents = {hub_push.CARD: card, **named, **{one.file: one.path for one in shown}}
    trained = ', '.join(f'{stage} {step}' for stage, step in steps.items())
    message = f'{export.form} by {provenance.PROGRAM} {provenance.VERSION}' + (f', steps: {trained}' if trained else '')
    url = hub_push.push(name, contents, private=private, message=message)
    return f'{url} holds {len(contents)} files, read back and equal, {len(shown)} of them examples'


def _of_folder(folder: Path) -> dict[str, Path]:
    found = {}
    for path in sorted(folder.rglob('*')):
        if path.is_file() and path.name.endswith(_PARTS):
            found[path.relative_to(folder).as_posix()] = path
        elif not path.is_dir():
            raise ConfigError(f'{path} is no part of the model, and nothing else is pushed; take it out of there')
    return {name: path for name, path in found.items() if name != model_card.FILE}


def _of_files(form: str, written: Iterable[Path]) -> dict[str, Path]:
    output, *others = (path for path in written if path.suffix == files.SUFFIX)
    named = {_in_repository(form, output.name): output}
    for path in others:  # the second stage, x.super_resolution.safetensors, or a new word
        is_stage = form == lora_files.PEFT and path.name.startswith(f'{output.stem}.')
        name = path.name.replace(output.stem, Path(lora_files.PEFT_FILE).stem, 1) if is_stage else path.name
        named[name] = path
    return named


def _in_repository(form: str, file: str | None) -> str | None:
    return lora_files.PEFT_FILE if form == lora_files.PEFT else file


def examples(config: DreamBoothConfig, workdir: Path, steps: Mapping[str, int]) -> list[Example]:
    """Returns samples of a run to show on the hub, the first of every prompt but those of the class.

    They come from the last stage that has samples, and from the step nearest to the one that was exported.

    Args:
      steps: stage -> the step of its checkpoint that was exported; of another stage the newest samples are taken.

    Raises:
      ConfigError: if an image among them is not marked as generated, is marked "do not train", or is one of the photos
        or class images that the run was trained on.
    """
    of_stage = {
        stage: {int(grid.stem): images_of(grid) for grid in (workdir / 'samples' / stage).glob('*.png') if _has(grid)}
        for stage in STAGES
    }
    stage = next((stage for stage in reversed(STAGES) if of_stage[stage]), None)
    if stage is None:
        return []
    wanted = steps.get(stage, max(of_stage[stage]))
    step = min(of_stage[stage], key=lambda one: (abs(one - wanted), one))
    classes, trained_on, found = {one.class_prompt for one in config.subjects()}, _trained_on(workdir), []
    for path in sorted(of_stage[stage][step].glob('*_00.png')):
        prompt = _checked(path, trained_on)
        if prompt not in classes:
            found.append(Example(path, f'images/{path.name}', prompt, step))
    return found[:MOST_EXAMPLES]


def _has(grid: Path) -> bool:
    return grid.stem.isdigit() and images_of(grid).is_dir()


def _checked(path: Path, trained_on: Mapping[str, str]) -> str | None:
    """Returns the prompt of an image that may be shown; None: its file does not say it."""
    try:
        said, marks = provenance.read(path), training_marks.find(*read_file(path))
    except (ValueError, ImageError) as error:
        raise ConfigError(f'{error}; take it out of there, so that it is not pushed') from None
    if said.source != provenance.GENERATED:
        reason = 'does not say that a model has generated it, and photos are not pushed'
    elif marks:
        reason = f'is marked "do not train" ({"; ".join(map(str, marks))}), and such images are not pushed'
    elif kind := trained_on.get(file_hash(path)):
        reason = f'is one of the {kind} that the run was trained on, and these are not pushed'
    else:
        return said.prompt
    raise ConfigError(f'{path} {reason}; take it out of there')


def _trained_on(workdir: Path) -> dict[str, str]:
    """Returns the hashes of the photos and class images of a run -> what they are."""
    found = {}
    try:
        begun = inputs.read(workdir)
        found |= {one.photo: 'photos' for listed in (begun.photos.values() if begun else ()) for one in listed}
        manifest = json.loads((workdir / 'prior' / MANIFEST).read_text('utf-8'))
        for entry in manifest['images'].values():
            found |= {value: 'class images' for key, value in entry.items() if key.endswith('sha256')}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # not there, damaged, or of another version
        pass
    return found
