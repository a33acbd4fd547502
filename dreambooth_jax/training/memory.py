"""What the user is told when the memory of a device is full: what was being done, and which settings need less."""

import contextlib
from collections.abc import Iterator, Sequence

import jax

from dreambooth_jax.config import DreamBoothConfig
from dreambooth_jax.training.loop import TrainingError

_FULL = 'RESOURCE_EXHAUSTED'  # XLA's status code for it on every device


class OutOfMemory(TrainingError):
    """The memory of a device of this host is full; other hosts need not know."""


@contextlib.contextmanager
def explained(doing: str, remedies: Sequence[str], *, kept: bool = True) -> Iterator[None]:
    """Turns XLA's error about full memory into one with advice; other errors pass unchanged.

    Args:
      doing: what is being done; the message puts it after 'while'.
      remedies: flags that need less memory, the cheapest first; may be empty.
      kept: whether the work done so far is stored in the folder of the run.

    Raises:
      OutOfMemory: if the memory of the device is full.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if _FULL not in str(error):
            raise
        first_line = str(error).strip().splitlines()[0]
        advice = f'try {", then ".join(remedies)}' if remedies else 'take a device with more memory or smaller images'
        again = 'start again: what is done is kept' if kept else 'start again'
        raise OutOfMemory(f"the device's memory is full while {doing} ({first_line}); {advice}, and {again}") from None


def remedies(config: DreamBoothConfig, stage: str, *, begun: bool, devices: int) -> list[str]:
    """Returns the flags that reduce the memory of a training step, ordered by what they cost in speed or fidelity.

    Args:
      begun: whether the stage has a checkpoint. A checkpoint fits only one optimizer and one kind of weights, so flags
        that change these are left out.
      devices: that train, of all hosts.
    """
    parts, examples = getattr(config, stage).gradient_accumulation_steps, config.examples_per_step(stage)
    whole = config.lora.rank is None and not begun
    compressible = config.optimizer.kind == 'adamw' and config.optimizer.state_dtype != 'int8'
    flags = {
        '--config.parallel.mode=fsdp': devices > 1 and config.parallel.mode == 'pmap',
        '--config.parallel.remat=True': not config.parallel.remat,
        '--config.optimizer.state_dtype=int8': whole and compressible,
        f'--config.{stage}.gradient_accumulation_steps={min(2 * parts, examples)}': parts < examples,
        '--config.lora.rank=16': whole,
    }
    return [flag for flag, helps in flags.items() if helps]
