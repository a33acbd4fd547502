"""The program train on the devices in another order than that of jax.devices()."""

import sys

from dreambooth_jax import program, train
from dreambooth_jax.training import placement


def main() -> None:
    plain = placement.make_placement

    def permuted(mode, **options):
        import jax

        devices = jax.devices()
        return plain(mode, **{**options, 'devices': devices[1::2] + devices[::2]})

    placement.make_placement = permuted
    program.run(train.main, required=['config', 'workdir'])


if __name__ == '__main__':
    sys.exit(main())
