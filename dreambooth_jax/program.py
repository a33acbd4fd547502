"""How every program starts and ends: flags, quiet libraries, and errors as one sentence with exit code 1.

The errors that are meant for people are known by name, so that nothing slow is imported before --help is answered.
"""

import logging
import os
import sys
from collections.abc import Callable, Sequence

from absl import app, flags
from absl import logging as absl_logging

from dreambooth_jax.settings import SettingsError

# Errors whose message is a whole sentence about what to do. Of modules that are not imported none can be on its way.
SENTENCES = (
    ('dreambooth_jax.settings', 'SettingsError'),
    ('dreambooth_jax.weights.errors', 'WeightsError'),
    ('dreambooth_jax.text.tokenize', 'TokenizerError'),
    ('dreambooth_jax.data.images', 'PictureError'),
    ('dreambooth_jax.generation.prior_images', 'PriorError'),
    ('dreambooth_jax.training.checkpoint', 'CheckpointError'),
    ('dreambooth_jax.training.loop', 'TrainingError'),
)
_HELP = ('--help', '-help', '-h', '--helpshort', '--helpfull')
# Messages about machinery that works: a TPU that is not there, every save's timings, XLA's advice.
_QUIET_LOGGERS = ('jax', 'orbax', 'etils', 'huggingface_hub', 'transformers')
_QUIET_MESSAGE = 'Unable to initialize backend'


def run(main: Callable[[list[str]], None], required: Sequence[str] = ()) -> None:
    """Parses the command line, runs `main` and ends the process: 0 if it returns, 1 with one sentence on stderr if not.

    Args:
      main: given the arguments that are no flags, the program's name first; there are no others.
      required: flags that must be given.
    Raises: whatever `main` raises that is no message for people, as it is: that is a bug, and its traceback is wanted.
    """

    def checked(argv):
        _quiet()
        if len(argv) > 1:
            raise SettingsError(f'{argv[1]!r} belongs to no flag; give flags as --name=value (--help lists them)')
        for name in required:
            if flags.FLAGS[name].value in (None, []):
                raise SettingsError(f'--{name} must be given; --help says what it is')
        main(argv)

    try:
        app.run(checked, flags_parser=_parse)
    except SystemExit as ending:
        if ending.code == 1 and any(argument in _HELP for argument in sys.argv[1:]):
            raise SystemExit(0) from None  # absl ends with 1 after --help
        raise
    except KeyboardInterrupt:
        raise SystemExit(130) from None  # as shells say it: ended by Ctrl-C
    except Exception as error:
        sentence = explained(error)
        if sentence is None:
            raise
        raise SystemExit(sentence) from None


def explained(error: Exception) -> str | None:
    """What to tell people about an error; None if it was not foreseen."""
    if isinstance(error, OSError):
        return f'{error.filename}: {error.strerror}' if error.filename and error.strerror else str(error)
    known = (getattr(sys.modules[module], name) for module, name in SENTENCES if module in sys.modules)
    return str(error) if isinstance(error, tuple(known)) else None


def _parse(argv: list[str]) -> list[str]:
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        raise SystemExit(f'{" ".join(str(error).split())} (--help lists the flags)') from None


def _quiet() -> None:
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
    if flags.FLAGS.verbosity < 1:  # absl's own default is to show everything
        absl_logging.set_verbosity(absl_logging.WARNING)
    for name in _QUIET_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger('jax._src.xla_bridge').addFilter(lambda record: _QUIET_MESSAGE not in record.getMessage())
