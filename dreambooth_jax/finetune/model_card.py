"""The model card of an export: what it was made from and how, what it can and cannot do, and how it is used.

Its head is read by the Hugging Face hub, for which it is README.md in a pipeline folder; beside a single file or an
adapter, NAME.md. It says what the run's folder says: settings, photos, scores. It has no date and no path of this
machine, so that equal runs have equal cards.

Source: huggingface.co/docs/hub/model-cards.
"""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dreambooth_jax.config import BUILT_IN, NO_MODEL, ConfigError, DreamBoothConfig, PretrainConfig
from dreambooth_jax.data.provenance import PROGRAM, VERSION
from dreambooth_jax.finetune import usage
from dreambooth_jax.finetune.licences import Licence, licence_of
from dreambooth_jax.generation.cascade import BASE, STAGES, Cascade
from dreambooth_jax.storybook import subjects as built_in
from dreambooth_jax.system import disk
from dreambooth_jax.training import best_checkpoint, inputs, run
from dreambooth_jax.weights import hub

FILE = 'README.md'
MADE_BY = f'<!-- written by {PROGRAM} -->'  # by which a card is known that may be replaced
_COPY = 'copy'  # how the names of scores end that compare with the nearest photo
_LIMITS = """\
Made to generate images of the subject of its photos. Not for images of people who have not agreed to them, nor to pass
generated images off as photographs. It can give back what its photos show, their background included, and what the base
model does wrong, it does wrong too."""
_PROVENANCE = """\
Images that dreambooth-jax generates with it say in their files that a model generated them (IPTC
`trainedAlgorithmicMedia`). Other programs may not do that; then it is up to whoever publishes the images. Such a mark
can be removed, and many websites strip it: an image without it may still be generated. What this card says is what the
run's settings say; nobody has verified it."""


class Example(NamedTuple):
    """A generated image that the card shows on the hub.

    Attributes:
      path: its file.
      file: its path in the repository.
      prompt: its prompt; None: it is not told.
      step: the step of the training that the model was at.
    """

    path: Path
    file: str
    prompt: str | None
    step: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Export:
    """What a card is about.

    Attributes:
      config: the settings of the run.
      cascade: the model.
      workdir: the run's folder, which holds its photos' hashes and its scores; None: they are not known.
      weights: lines that say which checkpoints were taken; empty: as the run's folder says.
      form: one of config.ExportFormat.
      file: name of the file; None: a folder.
      repository: the repository of the hub that it lies in, 'owner/name'; None: it does not lie there.
      examples: the images that the card shows.
    """

    config: DreamBoothConfig
    cascade: Cascade
    workdir: Path | None
    weights: Sequence[str] = ()
    form: str = 'diffusers'
    file: str | None = None
    repository: str | None = None
    examples: Sequence[Example] = ()

    def in_repository(self, name: str, file: str | None, examples: Sequence[Example]) -> 'Export':
        """Returns the same as it lies in a repository of the hub, where its file may have another name."""
        return dataclasses.replace(self, repository=name, file=file, examples=examples)

    @property
    def is_adapter(self) -> bool:
        """Whether it changes a model instead of being one."""
        return self.form.startswith('lora')

    @property
    def licence(self) -> Licence | None:
        """The licence of the base model; None: unknown."""
        return licence_of(self.config.model)

    @property
    def base_id(self) -> str | None:
        """The base model's id on the hub; None: it is not from there."""
        return self.base_of(self.config)

    @staticmethod
    def base_of(config: DreamBoothConfig) -> str | None:
        """Returns the id on the hub of a run's base model; None: it is not from there."""
        on_hub = config.model_revision is not None or hub.may_be_on_hub(config.model)
        return config.model if on_hub and config.model not in BUILT_IN else None

    @property
    def base_name(self) -> str:
        """What the base model is called, without the folder that it lies in."""
        return self.base_id or Path(self.config.model).name


def text(export: Export) -> str:
    """Returns the card as Markdown, with the head that the hub reads."""
    prompts = dict.fromkeys(subject.instance_prompt for subject in export.config.subjects())
    parts = {
        '': [MADE_BY, f'# {_plain(", ".join(prompts))}', _summary(export), *_gallery(export)],
        'How to use it': usage.paragraphs(
            export.cascade,
            export.form,
            export.file,
            export.base_name,
            export.config.subjects()[0].instance_prompt,
            export.repository,
        ),
        'What it was made from': [_list(_origins(export)), *_words(export)],
        'Scores': _scores(export),
        'Consent': [_consent(export.config)],
        'What it is for': [_LIMITS],
        'Where images come from': [_PROVENANCE],
    }
    sections = ['\n\n'.join([*([f'## {title}'] if title else []), *told]) for title, told in parts.items() if told]
    return '\n\n'.join([_head(export), *sections]) + '\n'


def of_pretraining(config: PretrainConfig) -> str:
    """Returns the card of a model that pretrain has trained on painted images, and on nothing else."""
    values = {'library_name': 'diffusers', 'license': 'unknown', 'tags': ['jax', 'storybook']}
    start = 'from scratch' if config.init is None else f'starting from {_code(Path(config.init).name)}'
    told = {
        'Stage': _code(config.stage),
        'Training': f'{config.steps} steps of {config.batch_size} images, {start}, with {PROGRAM} {VERSION}',
        'Images': 'scenes of Storybook, which a program has painted; no photo and no image of others is among them',
        'Its licence': 'none is given; whoever trained it chooses one before it is passed on',
    }
    return (
        '\n\n'.join([_yaml(values), MADE_BY, '# A model of Storybook', '## What it was made from', _list(told)]) + '\n'
    )


def description(export: Export) -> str:
    """Returns the same in a few sentences, for the header of a file (modelspec.py)."""
    consent = (export.config.data.consent or '').strip()
    told = [_summary(export), f'Consent: {consent}.' if consent else '', f'{_LIMITS} {_PROVENANCE}']
    return ' '.join(' '.join(told).replace('`', '').split())


def write_beside(export: Export, path: Path) -> Path:
    """Writes the card beside a file and returns its path; `check_beside` says whether it may.

    Raises:
      OSError: if the disk does not take it.
    """
    card = path.with_suffix('.md')
    with disk.writing(card) as new:
        new.write_text(text(export), 'utf-8')
    return card


def check_beside(path: Path) -> None:
    """Checks that no other text lies where the card of a file goes.

    Raises:
      ConfigError: if there is one.
    """
    card = path.with_suffix('.md')
    if card.exists() and not (card.is_file() and MADE_BY in card.read_text('utf-8', errors='replace')):
        raise ConfigError(
            f'{card} is where the model card of --output={path} goes, but holds something else; move it, or choose '
            f'another name'
        )


def _head(export: Export) -> str:
    config, licence = export.config, export.licence
    values: dict[str, Any] = {
        'base_model': export.base_id,
        'base_model_relation': ('adapter' if export.is_adapter else 'finetune') if export.base_id else None,
        'library_name': 'diffusers',
        'pipeline_tag': 'text-to-image',
        'license': licence.id if licence else 'unknown',
    }
    if licence and licence.id == 'other':
        values['license_name'] = re.sub(r'[^a-z0-9.]+', '-', licence.name.lower()).strip('-')
        values['license_link'] = f'https://huggingface.co/{export.base_id}' if export.base_id else None
    values['instance_prompt'] = config.subjects()[0].instance_prompt
    tags = ['text-to-image', 'diffusers', 'dreambooth', 'jax']
    tags += ['lora', 'template:sd-lora'] if export.is_adapter else []
    values['tags'] = tags + (['textual_inversion'] if config.textual_inversion.token else [])
    if export.examples:  # the hub's pages write '-' where there is no prompt to tell
        values['widget'] = [{'text': one.prompt or '-', 'output': {'url': one.file}} for one in export.examples]
    return _yaml(values)


def _gallery(export: Export) -> list[str]:
    """Returns what the hub replaces by the examples, and where they come from."""
    steps = ', '.join(dict.fromkeys(str(one.step) for one in export.examples))
    return ['<Gallery />', f'Samples of the training, at step {steps}.'] if export.examples else []


def _yaml(values: Mapping[str, Any]) -> str:
    # JSON is YAML: quoted as it is there, no text can end its value.
    lines = [f'{key}: {json.dumps(value, ensure_ascii=False)}' for key, value in values.items() if value is not None]
    return '\n'.join(['---', *lines, '---'])


def _summary(export: Export) -> str:
    what = 'Adapters (LoRA) for' if export.is_adapter else 'A fine-tuned copy of'
    licence = f'licence: {export.licence.name}' if export.licence else 'licence unknown'
    return (
        f'{what} {_plain(export.base_name)} ({licence}), which knows the subject of {_photos(export)} '
        f'by the method of DreamBooth, trained with {PROGRAM} {VERSION}.'
    )


def _origins(export: Export) -> dict[str, str]:
    config = export.config
    name = _code(export.base_name)
    if export.base_id:
        commit = f', revision `{config.model_revision}`' if config.model_revision else ''
        name = f'[{export.base_id}](https://huggingface.co/{export.base_id}){commit}'
    found = {'Base model': name, 'Its licence': _licence(export.licence, config.model)}
    if second := config.super_resolution_model:
        if second != NO_MODEL:
            known = _licence(licence_of(second), second)
            found['Second stage'] = f'{_code(second if hub.may_be_on_hub(second) else Path(second).name)}, {known}'
    if config.init_from:
        found['Started from'] = f'the weights of {_code(Path(config.init_from).name)}, itself a fine-tuned model'
    found['Photos'] = _photos(export)
    found['Subject'] = ', '.join(dict.fromkeys(_code(one.instance_prompt) for one in config.subjects()))
    found['Class'] = _class_examples(export)
    for stage in STAGES:
        settings = getattr(config, stage)
        if settings.steps and getattr(export.cascade, stage) is not None:
            at_once = f'{settings.batch_size} at once' if settings.batch_size > 1 else 'one at a time'
            told = f'{settings.steps} steps, photos {at_once}, learning rate {settings.learning_rate:g}'
            found[f'Training of {stage.replace("_", "-")}'] = told
    if config.lora.rank is not None:
        found['Adapters'] = f'{"DoRA" if config.lora.dora else "LoRA"} of rank {config.lora.rank}' + (
            '' if export.is_adapter else ', merged'
        )
    found['Weights'] = '; '.join(_of_checkpoints(export.weights or _weights(export.workdir)))
    return {name: told for name, told in found.items() if told}


def _licence(licence: Licence | None, model: str) -> str:
    if licence is None:
        where = f'its page, https://huggingface.co/{model}' if hub.may_be_on_hub(model) else 'where it was downloaded'
        return f'unknown; look at {where}, before this model is passed on'
    source = ' (as its page said when this program was written)' if hub.may_be_on_hub(model) else ''
    return f'{licence.name}, which holds for this model too{source}'


def _photos(export: Export) -> str:
    """Returns how many photos the subjects have."""
    painted = sum(len(built_in.reference_scenes(one.subject)) for one in export.config.subjects() if _is_painted(one))
    if all(_is_painted(subject) for subject in export.config.subjects()):
        return f'{painted} painted images'
    try:
        found = inputs.read(export.workdir) if export.workdir else None
    except ConfigError:  # it is damaged, which matters to those who train, not here
        found = None
    if found is None:
        return 'an unknown number of photos'
    count = painted + sum(len(of) for setting, of in found.photos.items() if setting != inputs.CLASS_PHOTOS)
    return f'{count} photo{"" if count == 1 else "s"}'


def _is_painted(subject: Any) -> bool:
    return subject.instance_dir is None and subject.tfds is None


def _class_examples(export: Export) -> str:
    config = export.config
    prompts = ', '.join(dict.fromkeys(_code(one.class_prompt) for one in config.subjects() if one.class_prompt))
    if config.prior.weight == 0:
        return 'trained without class images, so that the subject may show in images of its class'
    of_photos = 'held to what the base model predicts of the photos'
    if config.prior.kind == 'distillation':
        return f'{prompts}, {of_photos}{", with other words after that too" if config.prior.phrases else ""}'
    varied = f'; with other words after that, {of_photos}' if config.prior.phrases else ''
    if config.prior.dir is not None:
        return f'{prompts}, held by class images from a folder that was given{varied}'
    return f'{prompts}, held by {config.prior.num_images} class images that the base model generated{varied}'


def _weights(workdir: Path | None) -> list[str]:
    found = []
    for stage in STAGES if workdir else ():
        steps = run.checkpoints(workdir, stage)
        best = _best(workdir).get('step') if stage == BASE else None
        if best in steps:
            found.append(f'{stage}: checkpoint {best}, the best by evaluation')
        elif steps:
            found.append(f'{stage}: checkpoint {steps[-1]}')
    return found


def _of_checkpoints(weights: Sequence[str]) -> list[str]:
    # The others name folders of this machine.
    return [_plain(line) for line in weights if ': checkpoint ' in line]


def _words(export: Export) -> list[str]:
    token = export.config.textual_inversion.token
    return [f'It has learned the new word {_code(token)} (textual inversion).'] if token else []


def _best(workdir: Path | None) -> Mapping[str, Any]:
    try:
        return (best_checkpoint.read(workdir) if workdir else None) or {}
    except ConfigError:
        return {}


def _scores(export: Export) -> list[str]:
    """Returns the tables of scores; empty if the run has none."""
    told = []
    best = _best(export.workdir)
    chosen = next((one for one in best.get('candidates', ()) if one.get('step') == best.get('step')), None)
    if chosen:
        names = ('subject_fidelity', 'prompt_fidelity', 'drift')
        values = ', '.join(f'{name} {chosen[name]:.2f}' for name in names if name in chosen)
        told.append(f'Of {len(best["candidates"])} checkpoints, step {chosen["step"]} was the best: {values}.')
    try:
        found = json.loads((export.workdir / 'evaluation' / 'scores.json').read_text('utf-8'))
        tables = [_score_table(found, subject) for subject in found['models']['run']]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # none, or of another version
        return told
    measured = '; '.join(_of_checkpoints(found.get('weights', ())))
    by = f'Measured by `evaluate` ({measured}):' if measured else 'Measured by `evaluate`:'
    return [*told, by, *tables, _about_copies(found)]


def _score_table(found: Mapping[str, Any], subject: str) -> str:
    models = found['models']
    lines = [f'| {_plain(subject)} | this model | the one before | photos |', '|---|---|---|---|']
    for name, score in models['run'][subject].items():
        before = models.get('base', {}).get(subject, {}).get(name, {}).get('value')
        photos = found.get('ceiling', {}).get(name, {}).get(subject, {}).get('others')
        cells = (f'{value:.3f}' if value is not None else '' for value in (score['value'], before, photos))
        lines.append(f'| {name} | {" | ".join(cells)} |')
    return '\n'.join(lines)


def _about_copies(found: Mapping[str, Any]) -> str:
    named = {name for scores in found['models']['run'].values() for name in scores}
    if not any(name.rpartition('_')[2] == _COPY for name in named):
        return 'Likeness to the nearest photo, which shows copies, was not measured.'
    return (
        'Scores that end in `copy` are the likeness to the nearest photo: near 1, images give the photos back instead '
        'of showing the subject anew.'
    )


def _consent(config: DreamBoothConfig) -> str:
    consent = (config.data.consent or '').strip()
    if not consent:
        return 'No consent is recorded: the settings name no person.'
    lines = '\n'.join(f'> {_plain(line)}' for line in consent.splitlines())
    return f'The photos were given with this consent, in the words of whoever trained the model:\n\n{lines}'


def _list(values: Mapping[str, str]) -> str:
    return '\n'.join(f'- **{name}**: {value}' for name, value in values.items())


def _code(value: str) -> str:
    return f'`{" ".join(value.replace("`", " ").split())}`'


def _plain(value: str) -> str:
    """Returns text that Markdown shows as it is, on one line."""
    escaped = ''.join(f'\\{letter}' if letter in '\\`*_[]<>|#' else letter for letter in value)
    return ' '.join(escaped.split())
