"""Scores of the base stage while it trains: a callback that measures checkpoints and knows the best one (best.py).

At every evaluation the base stage alone generates a few of the paper's prompts and the class prompt, always from the
same noise, every prompt from its own. DINO and CLIP score them, on the devices that train, where they stay no longer
than that. All that a choice is made of is in best.json in the run's folder, which is written whole after each
evaluation: a run that goes on reads it, and takes what is known from there.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging

from dreambooth_jax.config import BUILT_IN, ConfigError, DreamBoothConfig, EvaluationConfig
from dreambooth_jax.evaluation import best, encoders, protocol, scores
from dreambooth_jax.evaluation.encoders import Encoder
from dreambooth_jax.evaluation.protocol import NOISE, Subject, noise_of
from dreambooth_jax.generation.cascade import BASE, Cascade
from dreambooth_jax.generation.options import SamplingOptions
from dreambooth_jax.monitoring import metrics
from dreambooth_jax.text.tokenize import TokenizerError
from dreambooth_jax.training import best_checkpoint, hosts, memory, run
from dreambooth_jax.training.callbacks import ChoosesCheckpoint
from dreambooth_jax.training.loop import TrainingError
from dreambooth_jax.training.placement import Placement
from dreambooth_jax.training.state import TrainState
from dreambooth_jax.weights.encoder_folders import usual_encoders
from dreambooth_jax.weights.errors import WeightsError

# [(prompt, how many images of it), ...] -> all these images in this order, uint8[N, H, W, 3].
Generate = Callable[[Sequence[tuple[str, int]]], np.ndarray]


def spread(subject: Subject, num_prompts: int) -> Subject:
    """Returns the subject with so many of its prompts, evenly spread over them: the middles of equal parts."""
    every = subject.prompts
    chosen = [every[int((number + 0.5) * len(every) / num_prompts)] for number in range(num_prompts)]
    return dataclasses.replace(subject, prompts=tuple(chosen))


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Measure:
    """Measures what a model makes of one subject.

    Attributes:
      subject: with the prompts that are asked.
      dino: encodes images.
      clip: encodes images and prompts.
      num_images: images per prompt.
      class_images: images of the class prompt.
    """

    subject: Subject
    dino: Encoder
    clip: Encoder
    num_images: int
    class_images: int
    _known: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    @property
    def _photos(self) -> np.ndarray:
        if 'photos' not in self._known:
            self._known['photos'] = self.dino.embed_images(self.subject.photos)
        return self._known['photos']

    @property
    def _texts(self) -> np.ndarray:
        if 'texts' not in self._known:
            self._known['texts'] = self.clip.embed_texts([asked.plain for asked in self.subject.prompts])
        return self._known['texts']

    def trained(self, generate: Generate) -> dict[str, float]:
        """Returns dino, clip_t and pres of a model that was trained on the subject."""
        return self._scores(*self._images(generate, [asked.text for asked in self.subject.prompts]))

    def before(self, generate: Generate) -> best.Scale:
        """Returns the ends of the scales: the same of the model before training, without the identifier."""
        images, of_class = self._images(generate, [asked.plain for asked in self.subject.prompts])
        ceiling = scores.ceiling(self._photos)['others']
        return best.Scale(
            **self._scores(images, of_class),
            ceiling=1.0 if ceiling is None else ceiling,
            clip_t_of_class=float(scores.cosines(self.clip.embed_images(of_class), self._texts).mean()),
        )

    def _images(self, generate: Generate, prompts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Returns the images of the prompts, and those of the class, uint8[N, H, W, 3] each."""
        # All at once, so that no more than one batch has to be filled up.
        images = generate(
            [(prompt, self.num_images) for prompt in prompts] + [(self.subject.class_prompt, self.class_images)]
        )
        count = len(prompts) * self.num_images
        return images[:count], images[count:]

    def _scores(self, images: np.ndarray, of_class: np.ndarray) -> dict[str, float]:
        texts = np.repeat(self._texts, self.num_images, axis=0)
        return {
            'dino': float(scores.fidelity(self.dino.embed_images(images), self._photos).mean()),
            'clip_t': float(scores.prompt_fidelity(self.clip.embed_images(images), texts).mean()),
            'pres': float(scores.fidelity(self.dino.embed_images(of_class), self._photos).mean()),
        }


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation:
    """All that the evaluations of a run have in common; `of` makes it.

    Attributes:
      settings: of the evaluation.
      workdir: the run's folder.
      measures: one for each subject.
      options: how images are sampled.
      original: the model before training.
      since: evaluations up to this step are not counted for the setting `patience`.
    """

    settings: EvaluationConfig
    workdir: Path
    measures: Sequence[Measure]
    options: SamplingOptions
    original: Cascade
    since: int = 0

    @classmethod
    def of(
        cls,
        config: DreamBoothConfig,
        workdir: Path,
        original: Cascade,
        photos: Sequence[tuple[np.ndarray, ...]],
        placement: Placement,
        since: int = 0,
    ) -> 'Evaluation | None':
        """Reads the encoders; returns None if the settings ask for no evaluation.

        Args:
          photos: the photos of every subject, in the order of `config.subjects()`.
          placement: the devices that generate and encode.
          since: see the class.

        Raises:
          ConfigError: if the prompts of a subject do not show its identifier, or an encoder has not what is needed.
          WeightsError, TokenizerError: as encoders.load_encoder.
        """
        settings = config.evaluation
        if not settings.every or not config.base.steps:
            return None
        try:
            found = protocol.subjects_of(config, photos)
        except ConfigError as error:
            raise ConfigError(f'{error} To train without scores, set config.evaluation.every to 0.') from None
        subjects = [spread(subject, settings.num_prompts) for subject in found]
        usual = usual_encoders(config.model in BUILT_IN)
        sources = {name: getattr(settings, name) or usual[name] for name in ('dino', 'clip')}
        dino, clip = (_encoder(name, source, placement) for name, source in sources.items())
        for name, encoder, parts in (('dino', dino, ('image',)), ('clip', clip, ('image', 'text'))):
            if lacking := [part for part in parts if not encoder.encodes(part)]:
                raise ConfigError(
                    f'config.evaluation.{name} is {sources[name]!r}, which encodes no {lacking[0]}s; give one that does'
                )
        counts = {'num_images': settings.num_images, 'class_images': settings.class_images}
        options = SamplingOptions.of_samples(config.samples)
        return cls(
            settings=settings,
            workdir=workdir,
            measures=[Measure(subject=subject, dino=dino, clip=clip, **counts) for subject in subjects],
            options=dataclasses.replace(
                options, steps=settings.steps or options.steps, seed=settings.seed, super_resolution=False
            ),
            original=original,
            since=since,
        )

    def during(self, cascade_of: Callable[[TrainState], Cascade]) -> 'ScoreCheckpoints':
        """Returns the callback.

        Args:
          cascade_of: training state -> the model with its weights.
        """
        return ScoreCheckpoints(self, cascade_of)

    @property
    def most_images(self) -> int:
        """The largest number of images that are generated in one go."""
        return max(self.settings.num_prompts * self.settings.num_images, self.settings.class_images)

    def programs(self) -> dict[str, tuple[Callable[..., jax.Array], Any, jax.ShapeDtypeStruct]]:
        """Returns what encodes, in the order in which it comes onto the devices: name -> as Encoder.programs."""
        one = self.measures[0]
        dino, clip = one.dino.programs(), one.clip.programs()
        return {'dino image': dino['image'], 'clip text': clip['text'], 'clip image': clip['image']}

    def verdict(self) -> str:
        """Says in a line which checkpoint is the best, and warns if it is beyond the bound of drift."""
        found = best_checkpoint.read(self.workdir) or {'step': None, 'candidates': []}
        chosen = next((one for one in found['candidates'] if one['step'] == found['step']), None)
        if chosen is None:
            return 'no checkpoint of the base stage was evaluated; the last one is taken'
        if chosen['drift'] > self.settings.max_drift:
            logging.warning(
                'at every evaluation the class had drifted beyond config.evaluation.max_drift %g; step %d has drifted '
                'least. Train with class images (config.prior.weight), at a lower learning rate or with fewer steps',
                self.settings.max_drift,
                chosen['step'],
            )
        return (
            f'best of {len(found["candidates"])} evaluated checkpoints: step {chosen["step"]} (subject '
            f'{chosen["subject_fidelity"]:.2f}, prompt {chosen["prompt_fidelity"]:.2f}, drift {chosen["drift"]:.2f}; '
            f'{self.workdir / best_checkpoint.FILE} has all)'
        )

    @property
    def measured_by(self) -> dict[str, Any]:
        """Everything that numbers depend on besides the run itself; only equals can be compared. JSON can hold it."""
        one = self.measures[0]
        return {
            'encoders': {'dino': one.dino.fingerprint, 'clip': one.clip.fingerprint},
            'prompts': [asked.text for measure in self.measures for asked in measure.subject.prompts],
            'num_images': one.num_images,
            'class_images': one.class_images,
            'noise': NOISE,
            'trade_off': {'beta': best.BETA, 'most': best.MOST},
            'sampling': {name: getattr(self.options, name) for name in ('steps', 'guidance_scale', 'sampler', 'seed')},
        }

    def scales(self) -> list[dict[str, float]]:
        """Measures the model before training, for each subject. It leaves the devices then."""
        return [dataclasses.asdict(self._measured(self.original, measure.before)) for measure in self.measures]

    def scored(self, cascade: Cascade, scales: Sequence[Mapping[str, float]]) -> dict[str, float]:
        """Returns the numbers of a checkpoint, means over the subjects. The model leaves the devices then."""
        found = []
        for measure, scale in zip(self.measures, scales, strict=True):
            numbers = self._measured(cascade, measure.trained)
            found.append(numbers | best.Scale(**scale).measured(**numbers))
        return {name: float(np.mean([numbers[name] for numbers in found])) for name in found[0]}

    def _measured(self, cascade: Cascade, measure: Callable[[Generate], Any]) -> Any:
        def generate(asked):
            prompts = [prompt for prompt, _ in asked]
            requests = [(i, noise_of(prompt, j)) for i, (prompt, count) in enumerate(asked) for j in range(count)]
            try:
                return np.concatenate([images.base for _, images in cascade.stream(prompts, requests, self.options)])
            finally:
                cascade.release()  # the encoders, and then the training, need the place

        batch_size = self.options.batch_size or cascade.usual_batch_size
        smaller = [f'--config.samples.batch_size={batch_size // 2}'] if batch_size > 1 else []
        try:
            with memory.explained('checkpoints are evaluated', [*smaller, '--config.evaluation.every=0']):
                return measure(generate)
        finally:
            for encoder in (self.measures[0].dino, self.measures[0].clip):
                encoder.release()


class ScoreCheckpoints(ChoosesCheckpoint):
    """Measures the checkpoints of the base stage and knows the best one: a callback of training.

    An evaluation that fails, such as for lack of memory, is a warning, and its step is no candidate: a training must
    not end because of its scores. Several hosts generate and encode together, and the first one writes.

    Args:
      evaluation: what is measured, and by what.
      cascade_of: training state -> the model with its weights.
    """

    def __init__(self, evaluation: Evaluation, cascade_of: Callable[[TrainState], Cascade]):
        self.evaluation, self.every = evaluation, evaluation.settings.every
        self._cascade_of, self._workdir = cascade_of, evaluation.workdir
        self._record, self._lost, written = hosts.json_of_first(self._begun)
        if written:  # it names the best of what is left, also by settings that have changed since
            self._write(self._record)

    def _begun(self) -> tuple[dict[str, Any], list[int], bool]:
        """Returns what best.json says about the steps up to the newest checkpoint, from which the training goes on.

        With it come the steps among them that have no checkpoint any more, and whether there is such a file. 'again'
        are the checkpoints that are to be evaluated first, and 'former' is the one of them that was the best.
        """
        there = run.checkpoints(self._workdir, BASE)
        new = {'measured_by': self.evaluation.measured_by, 'before': None, 'candidates': []}
        read = best_checkpoint.read(self._workdir)
        found = read or {'step': None, **new}
        formerly = [*found.get('again', ()), *(candidate['step'] for candidate in found['candidates'])]
        if found.get('measured_by') == new['measured_by']:
            kept = [candidate for candidate in found['candidates'] if candidate['step'] <= max(there, default=0)]
            new |= {'before': found.get('before'), 'candidates': kept}
        # Those that are still there and were evaluated by other measures, or not at all because it was off, are made up
        # for before the training goes on. The newest has its turn then.
        known = {candidate['step'] for candidate in new['candidates']}
        again = [step for step in there[:-1] if step not in known and (step in formerly or step % self.every == 0)]
        former = next((step for step in (found['step'], found.get('former')) if step in again), None)
        if found['candidates'] and found.get('measured_by') != new['measured_by']:
            left = [step for step in formerly if step in there]
            logging.warning(
                'the evaluations in %s were made with other settings of config.evaluation, encoders, samples or by '
                'another rule and cannot be compared with new ones: of %d checkpoints, the %d that are still there are '
                'evaluated again',
                self._workdir / best_checkpoint.FILE,
                len(formerly),
                len(left),
            )
        lost = [step for step in known if step not in there]
        return new | ({'again': again, 'former': former} if again else {}), lost, read is not None

    @property
    def candidates(self) -> list[dict[str, float]]:
        """The evaluated checkpoints in the order of training: step, and what Evaluation.scored returns."""
        return self._record['candidates']

    @property
    def again(self) -> Sequence[int]:
        return self._record.get('again', ())

    @property
    def best(self) -> int | None:
        if self._record.get('former') in self.again:
            return self._record['former']  # until it is compared with the others
        max_drift = self.evaluation.settings.max_drift
        chosen = best.choose(self.candidates, max_drift)
        if chosen is not None and chosen['step'] in self._lost:
            # By the settings of now it would have been kept, but it is gone.
            there = [candidate for candidate in self.candidates if candidate['step'] not in self._lost]
            chosen = best.choose(there, max_drift)
        return None if chosen is None else chosen['step']

    def enough(self, step: int) -> bool:
        settings = self.evaluation.settings
        until = [candidate for candidate in self.candidates if candidate['step'] <= step]
        idle = best.without_gain(until, settings.max_drift, self.evaluation.since)
        return settings.patience is not None and idle >= settings.patience

    def __call__(self, step: int, state: TrainState) -> Mapping[str, float] | None:
        numbers = self._scored(step, state)
        if step in self.again:  # also if it could not be evaluated
            left = [other for other in self.again if other != step]
            rest = {name: value for name, value in self._record.items() if name not in ('again', 'former')}
            self._write(rest | ({'again': left, 'former': self._record['former']} if left else {}))
        return numbers

    def _scored(self, step: int, state: TrainState) -> Mapping[str, float] | None:
        if not self._has(step):
            try:
                self._evaluate(step, state)
            except (TrainingError, ConfigError, jax.errors.JaxRuntimeError) as error:
                if isinstance(error, jax.errors.JaxRuntimeError) and jax.process_count() > 1:
                    raise  # a host that goes on alone would wait for the others for ever
                logging.warning('step %d is not evaluated, training goes on: %s', step, error)
                return None
        if self._is_told(step):
            return None
        return {name: value for name, value in self._of(step).items() if name != 'step'}

    def missed(self, step: int) -> bool:
        return bool(hosts.of_first(not (self._has(step) and self._is_told(step))))

    def _has(self, step: int) -> bool:
        return any(candidate['step'] == step for candidate in self.candidates)

    def _of(self, step: int) -> dict[str, float]:
        return next(candidate for candidate in self.candidates if candidate['step'] == step)

    def _is_told(self, step: int) -> bool:
        # Whether the metrics have the numbers; a kill may have come between the two files.
        lines = metrics.read(self._workdir, BASE) if (self._workdir / metrics.FILE).is_file() else []
        return any(line['step'] == step and 'trade_off' in line for line in lines)

    def _evaluate(self, step: int, state: TrainState) -> None:
        if self._record['before'] is None:
            scales = self.evaluation.scales()
            self._write({**self._record, 'before': hosts.json_of_first(lambda: scales)})
        numbers = self.evaluation.scored(self._cascade_of(state), self._record['before'])
        candidate = hosts.json_of_first(lambda: {'step': step, **numbers})
        self._write({**self._record, 'candidates': [*self.candidates, candidate]})

    def _write(self, record: dict[str, Any]) -> None:
        self._record = record
        rule = best.rule(self.evaluation.settings.max_drift)
        last = record['candidates'][-1]['step'] if record['candidates'] else 0
        ended = last if self.enough(last) else None
        content = {'stage': BASE, 'step': self.best, 'rule': rule, 'enough': ended, **record}
        hosts.on_first(lambda: best_checkpoint.write(self._workdir, content), 'write best.json')


def _encoder(name: str, source: str, placement: Placement) -> Encoder:
    try:
        return encoders.load_encoder(source, placement=placement)
    except (WeightsError, TokenizerError) as error:
        raise type(error)(
            f'checkpoints are to be scored with config.evaluation.{name}, which cannot be read (to train without '
            f'scores, set config.evaluation.every to 0): {error}'
        ) from None
