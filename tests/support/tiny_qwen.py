"""A byte-level tokenizer laid out like Qwen's, special tokens after the words, and the form of a chat."""

import json

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import Qwen2Tokenizer

TEXTS = ['a photo of sks dog on the beach', 'a red cat in a bucket, studio light', 'a backpack in the snow'] * 4
# What the published template does with one message and the answer to come.
CHAT_TEMPLATE = (
    "{% for turn in messages %}<|im_start|>{{ turn['role'] }}\n{{ turn['content'] }}<|im_end|>\n{% endfor %}"
    '{% if add_generation_prompt %}<|im_start|>assistant\n'
    '{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}'
)


def tokenizer() -> Qwen2Tokenizer:
    """Returns a tokenizer of about 300 tokens."""
    raw = Tokenizer(models.BPE())
    raw.normalizer = normalizers.NFC()
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False))
    model = json.loads(raw.to_str())['model']
    made = Qwen2Tokenizer(
        vocab=model['vocab'],
        merges=[tuple(merge.split(' ')) if isinstance(merge, str) else tuple(merge) for merge in model['merges']],
        eos_token='<|im_end|>',
        pad_token='<|endoftext|>',
        unk_token='<|endoftext|>',
        extra_special_tokens=['<|im_start|>'],
        model_max_length=131072,
        padding_side='right',
    )
    made.add_tokens(['<think>', '</think>'])
    made.chat_template = CHAT_TEMPLATE
    return made
