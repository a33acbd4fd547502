"""Images are written in one place alone, which marks them. Read from the source, of the package and of experiments."""

import ast
import re
from pathlib import Path

import pytest

from dreambooth_jax.data import provenance

ROOT = Path(__file__).parent.parent
WRITER = ROOT / 'dreambooth_jax' / 'data' / 'provenance.py'
FILES = sorted(path for folder in ('dreambooth_jax', 'experiments') for path in (ROOT / folder).rglob('*.py'))
# Other things that have a method `save`: checkpoints, tokenizers, the classifier's weights, and the sample grid, which
# writes through the writer.
NO_IMAGES = {
    'self.checkpoints',
    'self._manager',
    'tokenizer',
    'Tokenizer.load(source, added=pipeline.added_tokens)',
    'classifier',
    'self',
    'provenance',
}
# Other ways to write an image: functions of Pillow's plugins, imageio, OpenCV, TensorBoard and matplotlib.
OTHERS = re.compile(r'imsave|imwrite|savefig|write_png|encode_png|encode_jpeg|add_images?|PngInfo|tobytes_png|to_bytes')


def writes(path):
    """The lines of a file that may write an image: calls of `save`, and the names of other functions that do."""
    found = []
    for node in ast.walk(ast.parse(path.read_text('utf-8'))):
        name = node.attr if isinstance(node, ast.Attribute) else getattr(node, 'id', '')
        if OTHERS.fullmatch(name):
            found.append(f'{path.name}:{node.lineno} {name}')
        is_save = isinstance(node, ast.Attribute) and node.attr == 'save'
        if is_save and ast.unparse(node.value) not in NO_IMAGES:
            found.append(f'{path.name}:{node.lineno} {ast.unparse(node)}')
    return found


def test_no_other_place_writes_images():
    assert [line for path in FILES if path != WRITER for line in writes(path)] == []
    assert writes(WRITER)


@pytest.mark.parametrize(
    'line', ["image.save('x.png')", 'f(Image.fromarray(x).save)', 'plt.imsave(x)', 'cv2.imwrite(path, x)']
)
def test_a_place_that_writes_images_is_seen(line, tmp_path):
    (tmp_path / 'new.py').write_text(line)
    assert len(writes(tmp_path / 'new.py')) == 1


CHARTS = ('chart.png',)  # of numbers, without an image


def test_images_in_the_repository_are_marked():
    paths = [path for path in (ROOT / 'experiments').rglob('*.png') if path.name not in CHARTS]
    assert len(paths) >= 8
    assert [path for path in paths if provenance.read(path).source != provenance.GENERATED] == []
