"""The start and end of every program: flags, quiet libraries, and errors as one sentence with exit code 1.

The errors whose message is meant for users are listed by name, so that --help is answered before anything slow is
imported. Characters that the console cannot show are escaped. If nobody reads the output any more, the program ends
with exit code 141, as in shells. Ctrl-C and SIGTERM end it at any moment (system/ending.py).
"""

import importlib.machinery
import importlib.util
import logging
import os
import sys
import threading
import traceback
from collections.abc import Callable, Sequence

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_dict, config_flags

from dreambooth_jax.config.price import Price
from dreambooth_jax.config.schema import ConfigError, expanded, is_unicode
from dreambooth_jax.system import disk, program_cache
from dreambooth_jax.system.ending import end_on_signals

# Errors whose message is a whole sentence about what to do. A module that is not imported cannot have raised one.
SENTENCES = (
    ('dreambooth_jax.config.schema', 'ConfigError'),
    ('dreambooth_jax.system.lock', 'LockError'),
    ('dreambooth_jax.weights.errors', 'WeightsError'),
    ('dreambooth_jax.text.tokenize', 'TokenizerError'),
    ('dreambooth_jax.data.images', 'ImageError'),
    ('dreambooth_jax.data.content_credentials', 'CredentialsError'),
    ('dreambooth_jax.generation.class_images', 'PriorError'),
    ('dreambooth_jax.training.checkpoint', 'CheckpointError'),
    ('dreambooth_jax.training.loop', 'TrainingError'),
)
_HELP = ('--help', '-help', '-h', '--helpshort', '--helpfull')
# Loggers with messages about things that work: an absent TPU, the timings of every save, advice from XLA.
_QUIET_LOGGERS = ('jax', 'orbax', 'etils', 'huggingface_hub', 'transformers')
_QUIET_MESSAGE = 'Unable to initialize backend'
_LOOP_IS_CLOSED = 'Event loop is closed'  # Orbax's message for every array after one that could not be written
_INTERRUPTED, _NOBODY_READS = 130, 141  # as in shells: 128 + number of the signal

flags.disclaim_key_flags()  # flags defined by this module count as flags of the program that asks for them


class _PathParser(flags.ArgumentParser):
    """Parses a path or the name of a model; see config.schema.expanded."""

    syntactic_help = 'a path'

    def __init__(self, name: str):
        self.name = name

    def parse(self, argument: str) -> str:
        return expanded(f'--{self.name}', argument)


def DEFINE_path(name: str, default: str | None, help: str) -> flags.FlagHolder:
    """Defines a flag that is a path, or may be one (a model): ~ is expanded, and an empty value is an error."""
    return flags.DEFINE(_PathParser(name), name, default, help)


def DEFINE_multi_path(name: str, default: list[str], help: str) -> flags.FlagHolder:
    """Defines the same kind of flag, which may be given several times."""
    return flags.DEFINE_multi(_PathParser(name), flags.ArgumentSerializer(), name, default, help)


class _PriceParser(flags.ArgumentParser):
    """Parses what an hour costs; see config.price."""

    syntactic_help = 'a price'

    def __init__(self, name: str):
        self.name = name

    def parse(self, argument: str) -> Price:
        return Price.parsed(f'--{self.name}', argument)


def DEFINE_price(name: str, help: str) -> flags.FlagHolder:
    """Defines a flag that is the price of an hour, such as '1.20 USD'; None where it is not given."""
    return flags.DEFINE(_PriceParser(name), name, None, help)


class _ConfigFileParser(flags.ArgumentParser):
    """Parses FILE or FILE:WORD and returns the result of get_config() or get_config(WORD) in that file."""

    syntactic_help = 'a Python file'

    def __init__(self, name: str):
        self.name = name
        self.config = None  # the last result; the flag itself has no value until all flags are parsed

    def parse(self, argument: str) -> config_dict.ConfigDict:
        name, colon, word = argument.partition(':')
        flag = f'--{self.name}={argument}'
        path = os.path.abspath(expanded(f'--{self.name}', name))
        try:
            # These three lines do what ml_collections' own parser does, whose error messages are not fit for users.
            loader = importlib.machinery.SourceFileLoader(f'{self.name}_config', path)
            module = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
            loader.exec_module(module)
            if not callable(getattr(module, 'get_config', None)):
                raise ConfigError(f'{flag} has no function get_config(); give a config file, such as configs/dog.py')
            config = module.get_config(*([word] if colon else []))
        except (ConfigError, KeyboardInterrupt):
            raise
        except OSError as error:
            if error.filename != path:
                raise ConfigError(f'{flag}: {_in_file(error, path)}') from None
            reason = 'is not there' if isinstance(error, FileNotFoundError) else f'cannot be read: {error.strerror}'
            raise ConfigError(
                f'the file given to {flag} {reason}; give the path of a config file, such as configs/dog.py'
            ) from None
        except Exception as error:  # a config file is Python code and may raise anything
            raise ConfigError(f'{flag}: {_in_file(error, path)}') from None
        if not isinstance(config, config_dict.ConfigDict):
            raise ConfigError(
                f'{flag}: get_config() returns {type(config).__name__} but must return what to_config_dict() gave'
            )
        config.lock()
        self.config = config
        return config


def DEFINE_config(name: str, help: str, **options) -> flags.FlagHolder:
    """Defines a flag such as --config=FILE and, with it, --config.ANY.SETTING=VALUE.

    Args:
      options: flag_values and sys_argv, as in config_flags.DEFINE_config_file.
    """
    holder = config_flags.DEFINE_config_file(name, None, help, **options)
    options.get('flag_values', flags.FLAGS)[name].parser = _ConfigFileParser(name)
    return holder


def _in_file(error: Exception, path: str) -> str:
    """Describes an error in a config file, with the line if it is known."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    if isinstance(error, SyntaxError) and error.filename == path:
        lines.append(error.lineno)
    reason = error.msg if isinstance(error, SyntaxError) else str(error)
    where = f'line {lines[-1]}: ' if lines else ''
    return where + f'{type(error).__name__}: {" ".join(reason.split())}'.rstrip(': ')


def run(main: Callable[[list[str]], None], required: Sequence[str] = ()) -> None:
    """Parses the command line, runs `main` and ends the process.

    The exit code is 0 if `main` returns, and 1 with one sentence on stderr if it raises an error meant for users.

    Args:
      main: function of the arguments that are not flags; this is the program's name alone.
      required: names of flags that must be given.

    Raises:
      Exception: every other error of `main`, unchanged: it is a bug, and its traceback is needed.
    """
    # Before anything can fail or print.
    end_on_signals()
    program_cache.use()
    _escape_what_cannot_be_shown()
    _hush_threads()

    def checked(argv):
        _quiet()
        if len(argv) > 1:
            raise ConfigError(f'{argv[1]!r} belongs to no flag; give flags as --name=value (--help lists them)')
        for name in required:
            if flags.FLAGS[name].value in (None, []):
                raise ConfigError(f'--{name} must be given; --help says what it is')
        for name, value in flags.FLAGS.flag_values_dict().items():
            for text in value if isinstance(value, list) else [value]:
                if isinstance(text, str) and not is_unicode(text) and not _is_path(name):
                    raise ConfigError(f'--{name} is {text!r}, which is not UTF-8; set LC_ALL=C.UTF-8 first')
        main(argv)

    # Every way in which a program can end, turned into an exit code and at most one sentence.
    try:
        app.run(checked, flags_parser=_parse)
    except SystemExit as ending:
        if ending.code == 1 and any(argument in _HELP for argument in sys.argv[1:]):
            raise SystemExit(0) from None  # absl ends with 1 after --help
        raise
    except KeyboardInterrupt:
        raise SystemExit(_INTERRUPTED) from None
    except BrokenPipeError as error:
        if error.filename:  # a file of the run, such as a named pipe, not stdout
            raise SystemExit(explained(error)) from None
        _stop_printing()
        raise SystemExit(_NOBODY_READS) from None
    except Exception as error:
        sentence = explained(error)
        if sentence is None:
            raise
        raise SystemExit(sentence) from None


def explained(error: Exception) -> str | None:
    """Returns the sentence that tells users about an error; None if the error was not foreseen."""
    known = (getattr(sys.modules[module], name) for module, name in SENTENCES if module in sys.modules)
    if isinstance(error, tuple(known)):
        return str(error)
    return disk.sentence(error) if isinstance(error, OSError) else None


def _is_path(flag: str) -> bool:
    return isinstance(flags.FLAGS[flag].parser, _PathParser)


def _parse(argv: list[str]) -> list[str]:
    try:
        return flags.FLAGS(argv)
    except ConfigError:
        raise
    except (flags.Error, KeyError, ValueError, TypeError) as error:
        reason = ' '.join(str(error.args[0] if error.args else error).split())
        if behind := _behind_settings(argv):  # the parser's own message would be Python's about the value there
            reason = f'{behind[0]} is not a known setting; what stands before its last dot is one itself'
        raise SystemExit(f'{reason} (--help lists the flags)') from None


def _behind_settings(argv: list[str]) -> list[str]:
    """Returns the names among the arguments in which a single setting, not a group, comes before the last dot."""
    found = []
    for name in (word.lstrip('-').partition('=')[0] for word in argv[1:] if word.startswith('-')):
        flag, *groups = name.split('.')[:-1] or ['']
        group = getattr(flags.FLAGS[flag].parser, 'config', None) if flag in flags.FLAGS else None
        for part in groups:
            known = isinstance(group, config_dict.ConfigDict) and part in group
            group = group[part] if known else None
            if known and not isinstance(group, config_dict.ConfigDict):
                found.append(name)
    return found


def _escape_what_cannot_be_shown() -> None:
    for name in ('stdout', 'stderr'):
        if getattr(sys, name) is None:  # closed by whoever started the program
            setattr(sys, name, open(os.devnull, 'w', encoding='utf-8'))
        # Line by line, so that nothing is lost if a signal ends the program.
        getattr(sys, name).reconfigure(errors='backslashreplace', line_buffering=True)


def _stop_printing() -> None:
    # Python flushes both streams when it exits and would print an error then.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(nowhere, stream.fileno())


def _quiet() -> None:
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
    if flags.FLAGS.verbosity < 1:  # absl's own default is to show everything
        absl_logging.set_verbosity(absl_logging.WARNING)
    for name in _QUIET_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger('jax._src.xla_bridge').addFilter(_is_no_advice)
    logging.getLogger('absl').addFilter(_is_not_of_orbax)


def _is_no_advice(record: logging.LogRecord) -> bool:
    return _QUIET_MESSAGE not in record.getMessage()


def _is_not_of_orbax(record: logging.LogRecord) -> bool:
    # Orbax also raises its errors, and training/checkpoint.py turns them into one sentence.
    return f'{os.sep}orbax{os.sep}' not in record.pathname


def _hush_threads() -> None:
    """Hides the tracebacks that threads of libraries print when the disk is full.

    The main thread gets an error too and reports it.
    """
    tell, tell_unraisable = threading.excepthook, sys.unraisablehook
    threading.excepthook = lambda told: None if _is_of_the_disk(told.exc_value) else tell(told)
    sys.unraisablehook = lambda told: None if _is_of_the_disk(told.exc_value) else tell_unraisable(told)
    logging.getLogger('asyncio').addFilter(_is_not_of_the_disk)


def _is_of_the_disk(error: BaseException | None) -> bool:
    return disk.code(error) is not None or _LOOP_IS_CLOSED in str(error)


def _is_not_of_the_disk(record: logging.LogRecord) -> bool:
    return not (record.exc_info and _is_of_the_disk(record.exc_info[1]))
