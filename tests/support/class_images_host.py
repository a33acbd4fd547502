"""One of two hosts that generate class images, started by test_class_images_hosts.py.

python -m tests.support.class_images_host PORT NUMBER FOLDER WHAT
"""

import sys
from pathlib import Path

import tests.conftest  # noqa: F401  must come before jax


def main(port: str, number: str, folder: str, what: str) -> None:
    import jax

    jax.distributed.initialize(f'localhost:{port}', num_processes=2, process_id=int(number))

    from dreambooth_jax.generation import class_images
    from dreambooth_jax.generation.class_images import PriorError
    from dreambooth_jax.training.loop import TrainingError
    from tests.generation.test_class_images import OPTIONS, Painter, ensure_class_images

    folder = Path(folder) / number  # of its own: the hosts share no disk
    if what == 'broken':
        folder.mkdir()
        (folder / 'manifest.json').write_text('[]')
    painter = Painter()
    try:
        images = ensure_class_images(painter, ['a dog'], folder, count=3, **OPTIONS)
        found = class_images.read(images, {'base': 8})['base'].images[:, 0, 0].tolist()
        print(f'RESULT: {len(list(folder.glob("*.png")))} files, {len(painter.asked)} generated, {found}')
    except (PriorError, TrainingError) as error:
        print(f'RESULT: {error}')


if __name__ == '__main__':
    main(*sys.argv[1:])
