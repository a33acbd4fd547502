"""What an evaluation found, told to people."""

from collections.abc import Mapping
from typing import Any

# Score -> what it says, and whether more or less of it is wanted.
_MEANINGS = {
    'dino': ("like the subject's photos, by DINO", 'more'),
    'dinov2': ("like the subject's photos, by DINOv2", 'more'),
    'clip_i': ("like the subject's photos, by CLIP", 'more'),
    'clip_t': ('like the prompt, by CLIP, without the identifier', 'more'),
    'clip_t_with_identifier': ('the same with the identifier', 'more'),
    'retrieval': ('the photos are found before look-alikes', 'more'),
    'copy': ('like the nearest photo; near 1 it is a copy', 'between'),
    'pres': ('images of the class like the subject: PRES', 'less'),
    'div': ('variety within a prompt: DIV', 'more'),
}


def text(found: Mapping[str, Any]) -> str:
    """Returns a table for each subject: every score of the run, of the model before and of the photos themselves.

    Args:
      found: the content of scores.json.
    """
    models = found['models']
    tables = []
    for subject in models['run']:
        rows = [('score', *models, 'photos', 'wanted', 'meaning')]
        for name in models['run'][subject]:
            ceiling = found['ceiling'].get(name, {}).get(subject, {}).get('others')
            told_of_it, wanted = meaning(name)
            told = [_with_interval(models[model][subject][name]) for model in models]
            rows.append((name, *told, '-' if ceiling is None else f'{ceiling:.3f}', wanted, told_of_it))
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = ['  '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        tables.append('\n'.join([f'{subject}:', *(f'  {line}' for line in lines)]))
    return '\n\n'.join(tables)


def meaning(name: str) -> tuple[str, str]:
    """Returns what a score says, and whether 'more' or 'less' of it is wanted; empty words for a score of others."""
    return _MEANINGS.get(name) or _MEANINGS.get(name.rpartition('_')[2]) or ('', '')


def _with_interval(score: Mapping[str, Any]) -> str:
    if score['low'] is None:
        return f'{score["value"]:.3f}'
    return f'{score["value"]:.3f} [{score["low"]:.3f}, {score["high"]:.3f}]'
