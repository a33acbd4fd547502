"""The models of one run that images can be generated with, kept while there is memory: generate answers with them.

model         what the run has trained and exported, <run>/model, as `sample --model=<run>` reads it
base_model    what the run began with
150           the checkpoint of that step, as `export --step=150` reads it
"""

import dataclasses
import os
from pathlib import Path
from typing import NamedTuple

from dreambooth_jax.finetune.trained import read_config, read_trained
from dreambooth_jax.generation.cascade import STAGES, Cascade
from dreambooth_jax.generation.request_queue import BASE_MODEL, MODEL
from dreambooth_jax.generation.run_settings import settings_of

_SHARE = 4  # of the machine's memory a quarter is for models that are kept beside the one in use


class RunModel(NamedTuple):
    """A model of a run.

    Attributes:
      cascade: the model.
      title: what the files of its images call the stages that were trained.
      stages: those stages; the others are called as the model's own folder, as is every stage of an exported model.
      step: the step of the training that it is at; None: of the model that the run began with or has exported.
      origins: lines of text that say where the weights of each stage come from.
    """

    cascade: Cascade
    title: str
    stages: tuple[str, ...]
    step: int | None
    origins: list[str]


class RunModels:
    """Reads the models of a run when they are asked for.

    Args:
      workdir: the run's folder.
      most_bytes: what models that are kept may have together; None: a quarter of the machine's memory.

    Attributes:
      settings: how the run samples.
      metadata: what files of images say, the run's samples.metadata.

    Raises:
      ConfigError: if `workdir` is not a run's folder.
    """

    def __init__(self, workdir: Path, most_bytes: int | None = None):
        self._workdir, self._config = workdir, read_config(workdir)
        self.settings, self.metadata = settings_of(str(workdir)), self._config.samples.metadata
        self._most = _memory() // _SHARE if most_bytes is None else most_bytes
        self._kept: dict[str, RunModel] = {}  # the one that was used last is the last
        self._programs = {}

    def get(self, name: str) -> RunModel:
        """Returns a model, which alone may be on the devices: the others are taken off them.

        Args:
          name: `model`, `base_model` or the step of a checkpoint.

        Raises:
          ConfigError, CheckpointError, WeightsError: if it is not there or cannot be read.
        """
        found = self._kept.pop(name, None)
        for kept in self._kept.values():
            kept.cascade.release()
        if found is None:
            found = self._read(name)
        sizes = {kept: _bytes(model.cascade) for kept, model in self._kept.items()}
        while sizes and sum(sizes.values()) + _bytes(found.cascade) > self._most:
            oldest = next(iter(sizes))
            del sizes[oldest], self._kept[oldest]
        self._kept[name] = found
        return found

    def forget(self) -> None:
        """Gives back the memory of all models."""
        self._kept.clear()
        self._programs.clear()

    def _read(self, name: str) -> RunModel:
        workdir, config = self._workdir, self._config
        if name == MODEL:
            size, clip_skip = self.settings.size, self.settings.clip_skip
            cascade = Cascade.load(workdir, size=size, clip_skip=clip_skip)
            return RunModel(cascade, workdir.name, (), None, [f'{MODEL}/ of the run'])
        if name == BASE_MODEL:
            cascade = Cascade.of(config)
            return RunModel(self._compiled(cascade), workdir.name, (), None, [f'as in {config.model}'])
        trained = read_trained(workdir, int(name))
        return RunModel(self._compiled(trained.cascade), trained.name, trained.stages, int(name), trained.origins)

    def _compiled(self, cascade: Cascade) -> Cascade:
        # The same networks with other weights, so that nothing need be compiled again.
        return dataclasses.replace(cascade, programs=self._programs)


def _bytes(cascade: Cascade) -> int:
    stages = [stage for name in STAGES if (stage := getattr(cascade, name)) is not None]
    networks = [network for stage in stages for network in stage.components.values()]
    return sum(value.nbytes for network in networks for value in network.params.values())


def _memory() -> int:
    return os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
