"""Runs a notebook's code cells in this process with commands that are noted instead of run, and parses commands."""

import contextlib
import re
import runpy
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat
from absl import flags

from dreambooth_jax import program

_COMMAND = re.compile(r'^(?P<indent> *)[!%](?P<command>.*)$', re.MULTILINE)


def read(path: Path) -> nbformat.NotebookNode:
    """Reads a notebook; one that is not valid is an error."""
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    return notebook


def code(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == 'code']


def with_parameters(notebook: nbformat.NotebookNode, **values: Any) -> nbformat.NotebookNode:
    """Returns the notebook with a cell that sets these values behind the one tagged `parameters`, as papermill does."""
    (at,) = [index for index, cell in enumerate(notebook.cells) if 'parameters' in cell.metadata.get('tags', ())]
    text = '\n'.join(f'{name} = {value!r}' for name, value in values.items())
    own = nbformat.v4.new_code_cell(text, metadata={'tags': ['injected-parameters']})
    return nbformat.v4.new_notebook(
        metadata=notebook.metadata, cells=[*notebook.cells[: at + 1], own, *notebook.cells[at + 1 :]]
    )


def run(notebook: nbformat.NotebookNode, command: Callable[[list[str]], None]) -> dict[str, Any]:
    """Runs the code cells; returns their variables.

    Args:
      command: is called with the words of every line that begins with ! or %, braces filled in as IPython does.
    """
    names: dict[str, Any] = {'_exit_code': 0, '_command': lambda line: command(shlex.split(line))}
    for cell in code(notebook):
        source = _COMMAND.sub(lambda found: f'{found["indent"]}_command(f{found["command"]!r})', cell.source)
        exec(compile(source, cell.id, 'exec'), names)
    return names


@contextlib.contextmanager
def flags_of(words: list[str]) -> Iterator[flags.FlagValues]:
    """Yields the flags of `python -m dreambooth_jax.NAME ARGUMENTS` as that program parses them; it does not run.

    Raises:
      AssertionError: if it is no such command, or a required flag is missing.
      flags.Error, ConfigError: if a flag is unknown or has a wrong value.
    """
    python, dash_m, module, *arguments = words
    assert (python, dash_m) == ('python', '-m') and module.startswith('dreambooth_jax.'), words
    known, argv, run = set(flags.FLAGS), sys.argv, program.run

    def parse(main, required=()):
        rest = flags.FLAGS(sys.argv)[1:]
        assert rest == [], f'{rest} belongs to no flag'
        missing = [name for name in required if flags.FLAGS[name].value in (None, [])]
        assert missing == [], f'{missing} must be given'

    sys.argv, program.run = [module, *arguments], parse
    try:
        runpy.run_module(module, run_name='__main__', alter_sys=True)
        yield flags.FLAGS
    finally:
        sys.argv, program.run = argv, run
        for flag in set(flags.FLAGS) - known:
            delattr(flags.FLAGS, flag)
        flags.FLAGS.unparse_flags()
