"""What an evaluation found, told to people."""

from collections.abc import Mapping, Sequence
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
    'masked': ('the same, photos without their background', 'more'),
    'subject_named': ('the classifier of Storybook names the subject', 'more'),
    'class_named': ('it names the class', 'more'),
    'context_named': ('it names the context that the prompt asks for', 'more'),
    'accessory_named': ('it names what the subject should wear', 'more'),
    'taken_for_subject': ('images of the class in which it names the subject', 'less'),
    'div': ('variety within a prompt: DIV', 'more'),
}
# The scores that the table of a benchmark has for every subject; the others are in the means.
MAIN = ('dino', 'dino_masked', 'dinov2', 'clip_i', 'clip_t', 'dino_retrieval', 'dino_pres', 'subject_named')


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
            says, wanted = meaning(name)
            told = [_with_interval(models[model][subject][name]) for model in models]
            rows.append((name, *told, _number(ceiling), wanted, says))
        tables.append('\n'.join([f'{subject}:', *(f'  {line}' for line in _table(rows).splitlines())]))
    return '\n\n'.join(tables)


def meaning(name: str) -> tuple[str, str]:
    """Returns what a score says, and whether 'more' or 'less' of it is wanted; empty words for a score of others."""
    return _MEANINGS.get(name) or _MEANINGS.get(name.rpartition('_')[2]) or ('', '')


def _with_interval(score: Mapping[str, Any]) -> str:
    if score['low'] is None:
        return f'{score["value"]:.3f}'
    return f'{score["value"]:.3f} [{score["low"]:.3f}, {score["high"]:.3f}]'


def benchmark_text(found: Mapping[str, Any]) -> str:
    """Returns the tables of a benchmark: every subject with its main scores, then the means of all scores.

    Args:
      found: what benchmark.score_all returns.
    """
    count = len(found['subjects'])
    heading = f'means over {count} subjects, with intervals from the bootstrap over subjects:'
    left_out = [f'{run} is missing: {reason}' for run, reason in found['missing'].items()]
    return '\n\n'.join([_of_subjects(found), f'{heading}\n{_of_means(found["means"])}', *_origins(found), *left_out])


def _of_subjects(found: Mapping[str, Any]) -> str:
    means = found['means']
    titles = [title for title in means if title != 'ceiling']
    names = [name for name in means['run'] if name in MAIN]
    rows = [('subject', *(_in_brackets(name, *titles[1:], 'photos') for name in names))]
    for run, scored in found['subjects'].items():
        ((subject, measured),) = scored['models']['run'].items()
        cells = []
        for name in names:
            floors = [scored['models'][title][subject][name]['value'] for title in titles[1:]]
            ceiling = scored['ceiling'].get(name, {}).get(subject, {}).get('others')
            cells.append(_in_brackets(_number(measured[name]['value']), *(map(_number, [*floors, ceiling]))))
        rows.append((run, *cells))
    rows += [(run, *['missing'] * len(names)) for run in found['missing']]
    mean = [[means[title][name]['value'] for title in titles] + [means['ceiling'].get(name)] for name in names]
    return _table([*rows, ('mean', *(_in_brackets(*map(_number, cell)) for cell in mean))])


def _of_means(means: Mapping[str, Any]) -> str:
    titles = [title for title in means if title != 'ceiling']
    groups = [group for group in ('live', 'objects') if any(group in told for told in means['run'].values())]
    kinds = list(dict.fromkeys(kind for told in means['run'].values() for kind in told['kinds'] if kind != 'class'))
    rows = [('mean', *titles, 'photos', *groups, *kinds, 'wanted', 'meaning')]
    for name, told in means['run'].items():
        parts = [*(told.get(group) for group in groups), *(told['kinds'].get(kind) for kind in kinds)]
        of_models = [_with_interval(means[title][name]) for title in titles]
        of_parts = ['-' if part is None else _number(part['value']) for part in parts]
        says, wanted = meaning(name)
        rows.append((name, *of_models, _number(means['ceiling'].get(name)), *of_parts, wanted, says))
    return _table(rows)


def _origins(found: Mapping[str, Any]) -> list[str]:
    """Returns a paragraph about where the weights come from if that differs, as when a run is not at its end."""
    runs: dict[str, list[str]] = {}
    for run, scored in found['subjects'].items():
        runs.setdefault('; '.join(scored['weights']), []).append(run)
    lines = [f'{", ".join(names)}: {weights}' for weights, names in runs.items()]
    return ['\n'.join(['weights:', *lines])] if len(lines) > 1 else []


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return '\n'.join(
        '  '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _in_brackets(value: str, *others: str) -> str:
    return f'{value} ({", ".join(others)})'


def _number(value: float | None) -> str:
    return '-' if value is None else f'{value:.3f}'
