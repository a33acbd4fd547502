"""Lists rare tokens of a model's tokenizer, which can name a subject; the token with the weakest prior comes first.

  python -m dreambooth_jax.find_identifier --model=storybook

The score is the token's log-probability in the tokenizer's vocabulary (T5), or the negative rank of its merge (CLIP).
"""

from absl import flags

from dreambooth_jax import program

_MODEL = program.DEFINE_path(
    'model', 'storybook', "'storybook', a pipeline folder, a single file, a run's folder, or a hub id."
)
_TOKENIZER_DIR = program.DEFINE_path('model_tokenizer_dir', None, 'Has the tokenizer/ of a model in a single file.')
_COUNT = flags.DEFINE_integer('count', 20, 'How many tokens at most.', lower_bound=1)


def main(argv) -> None:
    del argv
    from dreambooth_jax.families import reading
    from dreambooth_jax.text.identifier import rare_tokens
    from dreambooth_jax.text.tokenize import Tokenizer, TokenizerError

    folder = reading.read_pipeline(_MODEL.value, components=(), tokenizer_dir=_TOKENIZER_DIR.value).tokenizer_folder
    if folder is None:
        raise TokenizerError(f'model {_MODEL.value!r} has no tokenizer; give a base stage, which reads the prompts.')
    found = rare_tokens(Tokenizer.load(folder), _COUNT.value)
    if not found:
        raise TokenizerError(f'{folder} has no rare word of one token; give a model with a larger vocabulary.')
    print(f'{"id":>6}  {"text":<8}  {"score":>8}')
    for token in found:
        print(f'{token.id:>6}  {token.text:<8}  {token.score:>8.2f}')


if __name__ == '__main__':
    program.run(main)
