"""The program train, in a process that keeps its compiled programs whichever its number.

JAX keeps the programs of process 0 alone, so that every other process would compile at each start of a run. Only time
depends on the names inside JAX that are used here: where they are gone, the programs are compiled as before.
"""

from unittest import mock

from dreambooth_jax import program, train


def keep_programs() -> None:
    """Makes JAX take this process for the first one while it writes a program to its cache."""
    from jax._src import compiler, distributed

    write = compiler._cache_write

    def write_as_first(*arguments, **given):
        with mock.patch.object(distributed.global_state, 'process_id', 0):
            write(*arguments, **given)

    compiler._cache_write = write_as_first


def main(argv: list[str]) -> None:
    try:
        keep_programs()
    except (ImportError, AttributeError):
        pass
    train.main(argv)


if __name__ == '__main__':
    program.run(main, required=['config', 'workdir'])
