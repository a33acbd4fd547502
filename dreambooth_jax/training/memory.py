"""What to say when a device's memory is full: what was done meanwhile, and the settings that need less."""

import contextlib
from collections.abc import Iterator, Sequence

import jax

from dreambooth_jax.config import DreamBoothConfig
from dreambooth_jax.training.loop import TrainingError

_FULL = 'RESOURCE_EXHAUSTED'  # XLA's word for it, whatever the device


@contextlib.contextmanager
def explained(doing: str, remedies: Sequence[str], *, kept: bool = True) -> Iterator[None]:
    """Turns XLA's error about full memory into a sentence; others pass.

    Args:
      doing: put behind 'while'. remedies: flags that need less memory, the cheapest first; may be empty.
      kept: whether what is done by then lies in the run's folder.
    Raises: TrainingError.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if _FULL not in str(error):
            raise
        first_line = str(error).strip().splitlines()[0]
        advice = f'try {", then ".join(remedies)}' if remedies else 'take a device with more memory or smaller images'
        again = 'start again: what is done is kept' if kept else 'start again'
        raise TrainingError(
            f"the device's memory is full while {doing} ({first_line}); {advice}, and {again}"
        ) from None


def remedies(config: DreamBoothConfig, stage: str, *, begun: bool) -> list[str]:
    """What needs less memory in a training step, in the order in which it costs speed or fidelity.

    Args:
      begun: whether the stage has a checkpoint, which fits one optimiser and one kind of weights alone.
    """
    parts, examples = getattr(config, stage).gradient_accumulation_steps, config.examples_per_step(stage)
    whole = config.lora.rank is None and not begun
    compressible = config.optimizer.kind == 'adamw' and config.optimizer.state_dtype != 'int8'
    flags = {
        '--config.parallel.remat=True': not config.parallel.remat,
        '--config.optimizer.state_dtype=int8': whole and compressible,
        f'--config.{stage}.gradient_accumulation_steps={min(2 * parts, examples)}': parts < examples,
        '--config.lora.rank=16': whole,
    }
    return [flag for flag, helps in flags.items() if helps]
