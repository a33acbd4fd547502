"""How a prompt is put to a language model that reads it for an image: as one message of a user.

The published templates do much more; this is what they do with one message, no tools and the answer still to come.
Klein switches the model's thought off, which leaves an empty one in the text; Z-Image leaves it on, which adds nothing.

Source: chat_template of Qwen3's tokenizer; diffusers 0.42.1 Flux2KleinPipeline, ZImagePipeline.
"""


def asked(prompt: str) -> str:
    """Returns the text for a prompt, up to where the answer starts (`enable_thinking=True`), as Z-Image reads it."""
    return f'<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n'


def asked_without_thought(prompt: str) -> str:
    """Returns the text for a prompt with an empty thought at its end (`enable_thinking=False`), as Klein reads it."""
    return asked(prompt) + '<think>\n\n</think>\n\n'
