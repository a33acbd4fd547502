"""find_identifier from the command line: rare tokens of a model's tokenizer, rarest first."""

from tests.support import tiny_pipelines


def test_rare_tokens_are_listed_rarest_first(program):
    ended = program('find_identifier', f'--model={tiny_pipelines.folder()}', '--count=3')
    assert (ended.code, ended.error) == (0, '')
    heading, *rows = ended.out.splitlines()
    assert heading.split() == ['id', 'text', 'score']
    assert len(rows) == 3 and rows[0].split()[1] == 'sks'
    scores = [float(row.split()[2]) for row in rows]
    assert scores == sorted(scores)


def test_a_model_without_tokenizer_is_named(program):
    second = tiny_pipelines.folder() / 'super_resolution'
    ended = program('find_identifier', f'--model={second}')
    assert (ended.code, ended.error) == (
        1,
        f"model '{second}' has no tokenizer; give a base stage, which reads the prompts.",
    )
