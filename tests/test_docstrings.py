"""Docstrings of the package are built alike: a sentence, then sections in one order and one form.

    Args or Attributes, Returns or Yields, Raises, Source

A section follows an empty line. Its name stands alone on a line, and what it says below that, indented by two spaces.
`Raises` lists errors as `Error: when`. `Source` names a publication in one paragraph that begins with the word. A
docstring may also say in its sentence what is returned, and then has no section for it.
"""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / 'dreambooth_jax').rglob('*.py'))
ORDER = {'Args': 0, 'Attributes': 0, 'Returns': 1, 'Yields': 1, 'Raises': 2, 'Source': 3, 'Sources': 3}
SECTION = re.compile(rf'({"|".join(ORDER)}):(.*)')
GLUED = re.compile(r'(?<=\S )(Args|Attributes|Returns|Yields|Raises):(?= |$)')
ERRORS = re.compile(r'\w+(, \w+)*: \S')


def faults(docstring):
    """What is wrong with the sections of a docstring whose indentation is removed."""
    lines, found, last = docstring.splitlines(), [], -1
    for number, line in enumerate(lines):
        found += [f'{glued[1]} is in the middle of a line' for glued in GLUED.finditer(line)]
        section = SECTION.fullmatch(line)
        if not section:
            continue
        name, text = section.groups()
        if ORDER[name] < last:
            found.append(f'{name} comes too late')
        last = ORDER[name]
        if number == 0 or lines[number - 1]:
            found.append(f'{name} follows no empty line')
        if name.startswith('Source'):
            continue
        below = lines[number + 1] if number + 1 < len(lines) else ''
        if text or not re.match('  [^ ]', below):
            found.append(f'{name} does not stand alone above its text, which is indented by two')
        elif name == 'Raises':
            entries = re.match(r'(?:  .*(?:\n|$))*', '\n'.join(lines[number + 1 :]))[0].splitlines()
            found += [f'no error: {entry}' for entry in entries if entry[2] != ' ' and not ERRORS.match(entry[2:])]
    return found


def documented(path):
    """(where, docstring) of every class and function of a file."""
    for node in ast.walk(ast.parse(path.read_text('utf-8'))):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(node):
            yield f'{path.relative_to(ROOT)}:{node.lineno} {node.name}', ast.get_docstring(node)


def test_docstrings_are_built_alike():
    told = {where: faults(docstring) for path in FILES for where, docstring in documented(path)}
    assert {where: wrong for where, wrong in told.items() if wrong} == {} and len(told) > 500


GOOD = """Returns what there is.

Args:
  a: one, as
    long as it takes.

Raises:
  ValueError: if a is not
    there.
  KeyError, OSError: as elsewhere.

Source: a paper (2020): its
  second line."""


def test_a_good_docstring_has_no_fault():
    assert faults(GOOD) == faults('Returns: a word of the sentence.'.replace(':', '')) == []


@pytest.mark.parametrize(
    ('before', 'after', 'fault'),
    [
        ('there is.\n\nArgs', 'there is.\nArgs', 'Args follows no empty line'),
        ('Args:\n  a: one', 'Args: a: one', 'Args does not stand alone above its text, which is indented by two'),
        ('  a: one', '    a: one', 'Args does not stand alone above its text, which is indented by two'),
        ('a: one, as', 'a: one. Returns: two', 'Returns is in the middle of a line'),
        ('ValueError: if', 'ValueError if', 'no error:   ValueError if a is not'),
        ('\n\nSource', '\n\nReturns:\n  nothing\n\nSource', 'Returns comes too late'),
        ('\n\nRaises:', '\nRaises:', 'Raises follows no empty line'),
    ],
)
def test_a_fault_is_seen(before, after, fault):
    assert before in GOOD and fault in faults(GOOD.replace(before, after))
