"""dreambooth_jax/weights names no generation of models in its code; docstrings, comments and messages may."""

import ast
import re
from pathlib import Path

import pytest

import dreambooth_jax

FILES = sorted((Path(dreambooth_jax.__file__).parent / 'weights').glob('*.py'))
FAMILY = re.compile(r'(?i)(?<![a-z])(sd1|sd2|sdxl|upscaler)(?![a-z])')


def words(path):
    """Yields each identifier and each text outside docstrings that names a generation, except sentences of errors."""
    tree = ast.parse(path.read_text())
    docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    raised = {id(inner) for node in ast.walk(tree) if isinstance(node, ast.Raise) for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs | raised:
            found = node.value
        else:
            found = getattr(node, 'id', None) or getattr(node, 'arg', None) or getattr(node, 'attr', None)
            found = found or getattr(node, 'name', None)
        if isinstance(found, str) and FAMILY.search(found):
            yield found


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.name)
def test_no_generation_is_named(path):
    assert list(words(path)) == []
