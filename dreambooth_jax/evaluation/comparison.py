"""What experiments share that train some subjects in several ways and compare what was learned.

The ways differ in settings of configs/subject.py, and in the words for the subject. All ways of one subject are
measured before the next subject, and the report is written after each, so that an experiment that is ended has compared
all ways.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from absl import flags

from dreambooth_jax.config import STORYBOOK_FLOW, ConfigError
from dreambooth_jax.data import provenance
from dreambooth_jax.evaluation import experiment, subject_trials
from dreambooth_jax.evaluation.bars import bars
from dreambooth_jax.evaluation.subject_trials import SHARES, SubjectTrials, Trial, TrialModel
from dreambooth_jax.evaluation.trial_photos import TrialPhotos
from dreambooth_jax.monitoring import grids
from dreambooth_jax.storybook import subjects


@dataclasses.dataclass(frozen=True)
class Way:
    """One way of training a subject.

    Attributes:
      settings: dotted name -> value, those that differ from configs/subject.py; None: the model is not trained.
      called: the words for the subject in the prompts; None: the identifier and the class noun.
    """

    settings: Mapping[str, Any] | None = dataclasses.field(default_factory=dict)
    called: str | None = None


class Comparison:
    """An experiment that compares ways, with its flags.

    Args:
      here: the folder of the experiment; it gets results.json, chart.png, grid.png and the numbers in README.md, and
        has expected.json.
      subjects: the subjects that are trained unless --subjects names others.
      model: the model that is fine-tuned unless --model names another.
    """

    def __init__(self, here: Path, subjects: list[str], model: str = STORYBOOK_FLOW):
        self._here = here
        self._model = flags.DEFINE_string(
            'model', model, 'The model that is fine-tuned: MODEL of configs/dog.py:MODEL.'
        )
        self._weights = flags.DEFINE_string('weights', None, 'Folder or hub id in place of that of configs/dog.py.')
        self._photos = flags.DEFINE_string('photos', None, "Folder of photos per subject, as the paper's data set has.")
        self._encoders = {
            'dino': flags.DEFINE_string('dino', None, 'Folder or hub id; default: as evaluate takes it.'),
            'clip': flags.DEFINE_string('clip', None, 'The same; asked where no classifier knows the subjects.'),
        }
        self._subjects = flags.DEFINE_list('subjects', subjects, 'The subjects, of the thirty, that are trained.')
        self._workdir = flags.DEFINE_string('workdir', 'runs/experiments/subjects', 'Keeps runs and measured subjects.')
        self._output = flags.DEFINE_string('output', None, 'Gets the results; default: the folder of this file.')
        self._num_images = flags.DEFINE_integer('num_images', 2, 'Images per prompt.', lower_bound=1)
        self._class_images = flags.DEFINE_integer('class_images', 16, 'Images of the class prompt.', lower_bound=2)
        self._seed = flags.DEFINE_integer('seed', 2000, 'Of the noise.', lower_bound=0)
        self._batch_size = flags.DEFINE_integer('batch_size', 16, 'Images at once.', lower_bound=1)

    @property
    def workdir(self) -> Path:
        """The working folder, for files that the ways need."""
        return Path(self._workdir.value).expanduser()

    @property
    def subjects(self) -> list[str]:
        """The subjects that are trained."""
        return list(self._subjects.value)

    @property
    def photos(self) -> TrialPhotos:
        """The photos of the subjects."""
        return TrialPhotos(self._photos.value and Path(self._photos.value).expanduser())

    @property
    def output(self) -> Path:
        """The folder that gets the results."""
        return Path(self._output.value or self._here).expanduser()

    @property
    def about(self) -> dict[str, Any]:
        """What results.json says of the measurements: the model, and the images per prompt and of the class."""
        amounts = {'num_images': self._num_images.value, 'class_images': self._class_images.value}
        return {'model': self._model.value, **amounts}

    def trials(self) -> SubjectTrials:
        """Returns the trials, by which subjects are trained and measured.

        Raises:
          ConfigError: for an unknown subject.
        """
        for subject in self.subjects:
            if subject not in subjects.SUBJECTS:
                raise ConfigError(f'--subjects has {subject!r} but each must be one of {", ".join(subjects.SUBJECTS)}')
        encoders = {name: flag.value for name, flag in self._encoders.items()}
        return SubjectTrials(
            TrialModel(self._model.value, self._weights.value, self.photos, encoders),
            self._here.parents[1] / 'configs' / 'subject.py',
            self.workdir,
            num_images=self._num_images.value,
            class_images=self._class_images.value,
            sampling={'seed': self._seed.value, 'batch_size': self._batch_size.value},
        )

    def run(self, ways_of: Callable[[str], Mapping[str, Way]]) -> None:
        """Trains, measures and reports.

        Args:
          ways_of: subject -> title -> way; the titles are those of every subject.

        Raises:
          ConfigError: for an unknown subject.
        """
        trials = self.trials()
        measured: dict[str, dict[str, Trial]] = {}
        for subject in self.subjects:
            for title, way in ways_of(subject).items():
                trial = trials.measure(subject, way.settings, way.called)
                measured.setdefault(title, {})[subject] = trial
                print(subject, title, *subject_trials.told(trial.scores), flush=True)
            report(self._here, self.output, self.about, measured)


def report(here: Path, output: Path, about: Mapping[str, Any], measured: Mapping[str, Mapping[str, Trial]]) -> None:
    """Writes results.json, chart.png, grid.png and the section of README.md.

    Args:
      here: the folder with expected.json.
      output: the folder that is written to.
      about: what results.json says besides the numbers.
      measured: title of a way -> subject -> what was measured.
    """
    scores = {title: {subject: trial.scores for subject, trial in of.items()} for title, of in measured.items()}
    found = {
        'measured': experiment.measured_on([each for of in scores.values() for each in of.values()]),
        **about,
        'means': {title: subject_trials.summary(of.values()) for title, of in scores.items()},
        'results': scores,
    }
    experiment.write_json(output / 'results.json', found)
    names = subject_trials.measured(each for of in scores.values() for each in of.values())
    numbers = {
        entry: {
            title: {name: of[name][entry] if name in of else None for name in names}
            for title, of in found['means'].items()
        }
        for entry in ('mean', 'standard_error')
    }
    chart = bars(numbers['mean'], numbers['standard_error'])
    provenance.save(chart, output / 'chart.png', source=provenance.PAINTED)
    provenance.save(sheet(measured), output / 'grid.png')
    experiment.report(output, here / 'expected.json', found, tables(found))


def tables(found: Mapping[str, Any]) -> str:
    """Returns the numbers of results.json as Markdown: the means over subjects, then each subject."""
    names = subject_trials.measured(each for of in found['results'].values() for each in of.values())
    means = [[title, *subject_trials.summary_cells(of, names)] for title, of in found['means'].items()]
    each = [
        [subject, title, *(experiment.percent(SHARES[name](of[subject])) for name in names)]
        for subject in next(iter(found['results'].values()))
        for title, of in found['results'].items()
    ]
    return '\n\n'.join(
        [
            experiment.table(['mean over subjects ± standard error (least to most)', 'subjects', *names], means),
            '![shares, with standard errors over subjects](chart.png)',
            experiment.table(['subject', '', *names], each),
            '![a photo, then the subject and the subject in the snow](grid.png)',
        ]
    )


def sheet(measured: Mapping[str, Mapping[str, Trial]]):
    """Returns a photo of each subject, and of each way an image of the subject and one of it in the snow."""
    titles, rows = list(measured), []
    for subject in measured[titles[0]]:
        images = [some[0] for title in titles for some in list(measured[title][subject].images.values())[:2]]
        rows.append([measured[titles[0]][subject].photo, *images])
    headings = ['a photo', *(text for title in titles for text in (title, ''))]
    return grids.contact_sheet(rows, list(measured[titles[0]]), headings=headings)
