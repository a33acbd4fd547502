"""Numbers of a run, written as they come: `metrics.jsonl` for programs and TensorBoard events for eyes."""

import contextlib
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

FILE = 'metrics.jsonl'


class Metrics:
    """Writes one line of numbers a step.

    Args:
      folder: the run's folder; made if missing.
      stage: name put before every TensorBoard tag and into every line, such as 'base'.
      resume_step: lines of this stage beyond this step are dropped, so that a resumed run has each step once.
      tensorboard: write event files too.
    """

    def __init__(self, folder: str | Path, stage: str, *, resume_step: int = 0, tensorboard: bool = True):
        self.path = Path(folder) / FILE
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.stage = stage
        self._drop_after(resume_step)
        self._file = self.path.open('a')
        self._events = None
        if tensorboard:
            # Slow to import, so only when a run writes.
            from tensorboardX import SummaryWriter

            # No purge_step: TensorBoard would hide other stages' numbers too. What a resumed run repeats is equal.
            self._events = SummaryWriter(logdir=str(folder))

    def _drop_after(self, step: int) -> None:
        if not self.path.exists():
            return
        kept = []
        for line, entry in _lines(self.path):
            if entry.get('stage') != self.stage or entry.get('step', 0) <= step:
                kept.append(line)
        # In one move, so that a run that is killed meanwhile has all of its numbers still.
        new = self.path.with_suffix('.new')
        new.write_text(''.join(line + '\n' for line in kept))
        new.replace(self.path)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Adds the numbers of one step. What is not finite is written as null, for strict JSON readers."""
        values = {name: float(value) for name, value in values.items()}
        clean = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._file.write(json.dumps({'stage': self.stage, 'step': step, **clean}) + '\n')
        self._file.flush()
        if self._events is not None:
            for name, value in values.items():
                self._events.add_scalar(f'{self.stage}/{name}', value, step)

    def picture(self, step: int, name: str, pixels) -> None:
        """Adds a picture, uint8[H, W, 3], to TensorBoard."""
        if self._events is not None:
            self._events.add_image(f'{self.stage}/{name}', pixels, step, dataformats='HWC')

    def close(self) -> None:
        """Ends the files."""
        self._file.close()
        if self._events is not None:
            self._events.close()


def read(folder: str | Path, stage: str | None = None) -> list[dict]:
    """All lines of a run's metrics, of one stage or of all."""
    return [entry for _, entry in _lines(Path(folder) / FILE) if stage is None or entry['stage'] == stage]


def _lines(path: Path) -> Iterator[tuple[str, dict]]:
    # The last line of a killed run may be cut short.
    for line in path.read_text().splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            yield line, json.loads(line)
