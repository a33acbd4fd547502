import logging
import runpy
import sys
import threading
from typing import NamedTuple

import pytest
from absl import app, flags

from tests.support.holding import hold  # noqa: F401


class Ended(NamedTuple):
    """How a program ended: its exit code, what it printed, and its last words on stderr."""

    code: int
    out: str
    error: str


@pytest.fixture
def program(monkeypatch, capsys):
    """Runs `python -m dreambooth_jax.NAME ARGUMENTS` in this process, flags and all, and leaves no flag behind.

    An error that is meant for people ends as text; a bug raises, as it would print a traceback.
    """

    def run(name, *arguments):
        known = set(flags.FLAGS)
        root = logging.getLogger()
        handlers, level = root.handlers[:], root.level
        monkeypatch.setattr(app._register_and_parse_flags_with_usage, 'done', False)
        monkeypatch.setattr('sys.argv', [name, *map(str, arguments)])
        monkeypatch.setattr('dreambooth_jax.program.end_on_signals', lambda: None)  # they would end the tests
        for module, hook in ((sys, 'unraisablehook'), (threading, 'excepthook')):
            monkeypatch.setattr(module, hook, getattr(module, hook))  # to be given back
        capsys.readouterr()
        try:
            runpy.run_module(f'dreambooth_jax.{name}', run_name='__main__', alter_sys=True)
            code = 0
        except SystemExit as ending:
            code = ending.code
        finally:
            for flag in set(flags.FLAGS) - known:
                delattr(flags.FLAGS, flag)
            flags.FLAGS.unparse_flags()
            root.handlers[:] = handlers
            root.setLevel(level)
        captured = capsys.readouterr()
        if isinstance(code, str):  # what Python prints before it exits with 1
            return Ended(1, captured.out, captured.err + code)
        return Ended(code or 0, captured.out, captured.err)

    return run
