"""What learns a subject best? Trains subjects wholly, by LoRA and by textual inversion, beside the untrained model.

  python experiments/subject_fidelity/run.py
  python experiments/subject_fidelity/run.py --model=storybook --output=out

README.md has the question, the cost and the numbers.
"""

from pathlib import Path

from dreambooth_jax import program
from dreambooth_jax.config import STORYBOOK, STORYBOOK_FLOW
from dreambooth_jax.evaluation.comparison import Comparison, Way
from dreambooth_jax.storybook.subjects import SUBJECTS

# Subjects that the recipe was not chosen on.
_COMPARISON = Comparison(Path(__file__).parent, ['dog5', 'red_cartoon', 'can'])
# Model -> what the recipe leaves open: 'full' or 'LoRA' is the recipe itself. Adapters need higher learning rates than
# whole networks (experiments/main_job).
OTHER_WAY = {
    STORYBOOK: {
        'lora.rank': 16,
        'base.learning_rate': '1e-3',
        'base.text_encoder_learning_rate': '2.5e-3',
    },
    STORYBOOK_FLOW: {'lora.rank': None, 'base.learning_rate': '5e-4'},
}
OTHERS = {'lora.rank': 16, 'base.learning_rate': '1e-4'}  # of the default layers of a large model
TOKEN = '<subject>'
# Models whose text encoder is a language model, which learns no word.
WORDLESS = (STORYBOOK_FLOW, 'flux2-klein', 'z-image')


def ways_of(subject: str) -> dict[str, Way]:
    """Returns the ways. The new word of textual inversion starts as the class noun and needs no class examples."""
    noun, model = SUBJECTS[subject].class_noun, _COMPARISON.about['model']
    recipe, other = Way(), Way(OTHER_WAY.get(model, OTHERS))
    full, lora = (other, recipe) if model == STORYBOOK_FLOW else (recipe, other)
    ways = {'full': full, 'LoRA': lora, 'untrained': Way(None)}
    if model in WORDLESS:
        return ways
    inversion = {
        'textual_inversion.token': TOKEN,
        'textual_inversion.initializer': noun,
        'base.train_denoiser': False,
        'base.train_text_encoder': False,
        'base.text_encoder_learning_rate': None,
        'data.instance_prompt': f'a {TOKEN} {noun}',
        'samples.prompts': f"('a {TOKEN} {noun}',)",
        'prior.weight': '0.0',
    }
    return {**ways, 'textual inversion': Way(inversion, called=f'{TOKEN} {noun}')}


def main(_) -> None:
    _COMPARISON.run(ways_of)


if __name__ == '__main__':
    program.run(main)
