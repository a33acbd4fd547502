"""The numbers of a run, written as they come: `metrics.jsonl` for programs, and TensorBoard events for people."""

import contextlib
import json
import math
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from dreambooth_jax.system import disk

FILE = 'metrics.jsonl'


class Metrics:
    """Writes the numbers of each step as one line.

    Args:
      folder: the run's folder, which is created if it does not exist.
      stage: name of the stage, such as 'base'. Every line and every TensorBoard tag has it.
      resume_step: lines of this stage with a later step are removed, so that a resumed run has each step once.
      tensorboard: write event files too.
    """

    def __init__(self, folder: str | Path, stage: str, *, resume_step: int = 0, tensorboard: bool = True):
        self.path = Path(folder) / FILE
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.stage = stage
        self._drop_after(resume_step)
        self._file = self.path.open('a', encoding='utf-8')
        self._events = None
        if tensorboard:
            EventsWriter = _tensorboardx()
            # No session_log is written: TensorBoard would then hide the numbers of other stages. It is not needed,
            # because a resumed run repeats the same numbers.
            with disk.named(self.path.parent):
                self._events = EventsWriter(str(self.path.parent / 'events'), f'.{stage}')

    def _drop_after(self, step: int) -> None:
        if not self.path.exists():
            return
        kept = []
        for line, entry in _lines(self.path):
            if entry.get('stage') != self.stage or entry.get('step', 0) <= step:
                kept.append(line)
        # The file is replaced in one step, so that no numbers are lost if the run is killed meanwhile.
        with disk.writing(self.path) as new:
            new.write_text(''.join(line + '\n' for line in kept), 'utf-8')

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Adds the numbers of one step. A number that is not finite is written as null, for strict JSON readers."""
        values = {name: float(value) for name, value in values.items()}
        clean = {name: value if math.isfinite(value) else None for name, value in values.items()}
        if self._events is not None:
            from tensorboardX.summary import scalar

            for name, value in values.items():
                self._event(step, scalar(f'{self.stage}/{name}', value))
            # Before the line: a run that goes on after a kill takes the line as a sign that all is written.
            self.flush()
        with disk.named(self.path):
            self._file.write(json.dumps({'stage': self.stage, 'step': step, **clean}) + '\n')
            self._file.flush()

    def _event(self, step: int, summary) -> None:
        from tensorboardX.proto.event_pb2 import Event

        with disk.named(self.path.parent / 'events.out.tfevents'):
            self._events.write_event(Event(wall_time=time.time(), step=step, summary=summary))

    def flush(self) -> None:
        """Makes sure that everything is on the disk: a training that goes on from here does not write it again."""
        if self._events is not None:
            with disk.named(self.path.parent / 'events.out.tfevents'):
                self._events.flush()

    def close(self) -> None:
        """Closes the files."""
        with disk.named(self.path):
            self._file.close()
        if self._events is not None:
            with disk.named(self.path.parent / 'events.out.tfevents'):
                self._events.close()


def read(folder: str | Path, stage: str | None = None) -> list[dict]:
    """Returns all lines of a run's metrics, those of one stage or, if `stage` is None, of all stages."""
    return [entry for _, entry in _lines(Path(folder) / FILE) if stage is None or entry['stage'] == stage]


def _tensorboardx() -> type:
    """Returns tensorboardX's EventsWriter.

    Its SummaryWriter is not used because that writes in a thread: a full disk would end the thread, and the training
    would wait for it for ever. The package is imported only when a run writes. Where PyTorch is installed it would
    import that too, for which nothing here has a use and which takes seconds.
    """
    hidden = sys.modules.setdefault('torch', None) is None  # `import torch` then fails as if there were none
    try:
        from tensorboardX.event_file_writer import EventsWriter
    finally:
        if hidden:
            del sys.modules['torch']
    return EventsWriter


def _lines(path: Path) -> Iterator[tuple[str, dict]]:
    # The last line of a killed run may be cut short.
    for line in path.read_text('utf-8').splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            yield line, json.loads(line)
