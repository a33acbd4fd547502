"""Keeps compiled programs in the user's cache folder, so that a second run of the same job starts without compiling.

JAX stores them; this module says where, how large the folder may grow, and removes what a killed process left. Whoever
has set JAX's own variables keeps them: JAX_COMPILATION_CACHE_DIR names another folder, and
JAX_ENABLE_COMPILATION_CACHE=false turns the cache off.
"""

import os
from pathlib import Path

FOLDER = Path('dreambooth_jax') / 'programs'
MAX_BYTES = 4 * 2**30  # programs that were not used for longest go first
SHORTEST = 0.5  # seconds of compilation from which on a program is kept


def use() -> None:
    """Sets JAX's variables, before anything imports JAX; does nothing where the folder cannot be written."""
    if 'JAX_COMPILATION_CACHE_DIR' in os.environ:
        return
    folder = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / FOLDER
    try:
        folder.mkdir(parents=True, exist_ok=True)
        clean(folder)
    except OSError:
        return
    if not os.access(folder, os.W_OK):
        return
    os.environ['JAX_COMPILATION_CACHE_DIR'] = str(folder)
    os.environ.setdefault('JAX_COMPILATION_CACHE_MAX_SIZE', str(MAX_BYTES))
    os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', str(SHORTEST))


def clean(folder: Path) -> None:
    """Removes programs without the time of their last use, whose writers were killed.

    With such a program in the folder, JAX stores no others.

    Raises:
      OSError: if the folder cannot be read or changed.
    """
    for program in folder.glob('*-cache'):
        if not program.with_name(f'{program.name.removesuffix("-cache")}-atime').is_file():
            program.unlink(missing_ok=True)
