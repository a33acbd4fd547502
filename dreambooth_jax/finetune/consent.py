"""Whether a run may train on photos of people: only if its settings say whose consent they were given with, and how.

The program cannot know whether what they say is true. It asks, keeps the answer in the run's config.json and tells it
in the model card, so that nobody trains on people without having thought of it.
"""

from dreambooth_jax.config import ConfigError, DreamBoothConfig
from dreambooth_jax.text.people import person_in


def check(config: DreamBoothConfig) -> None:
    """Checks that consent is given if a subject is a person, by its prompts or by what its new word starts as.

    Raises:
      ConfigError: if data.consent is missing or blank.
    """
    if (config.data.consent or '').strip():
        return
    settings = {}
    for index, subject in enumerate(config.subjects()):
        where = f'config.data.subjects[{index}]' if config.data.subjects else 'config.data'
        settings |= {f'{where}.class_prompt': subject.class_prompt, f'{where}.instance_prompt': subject.instance_prompt}
    settings['config.textual_inversion.initializer'] = config.textual_inversion.initializer or ''
    for name, value in settings.items():
        if person := person_in(value):
            raise ConfigError(
                f'{name} is {value!r}, in which {person!r} names a person, but config.data.consent says nothing: set '
                f'it to whose consent the photos were given with, and how, such as "Ana Lima, by letter of 2026-11-02" '
                f'(or, if they show no real person, to that)'
            )
