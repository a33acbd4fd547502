"""Storybook's tokenizer: one token for every word of its world, a hundred meaningless tokens, and single characters.

The tokenizer is a Unigram model in the files of transformers' T5Tokenizer, so PyTorch's IFPipeline can open it without
sentencepiece and without a network connection. A score is a natural log-probability, as in T5's own vocabulary:

- Words follow Zipf's law in the order of `words()`: the grammar of captions, then the world, then ordinary English.
- `RARE_TOKENS` are rarer than every word and mean nothing before fine-tuning; they are candidates for identifiers.
- Single characters are rarest. Together they can spell any ASCII text, but a whole word always wins.

SentencePiece marks the start of a word by U+2581. All words are lower case, because IF lower-cases prompts.
"""

import collections
import itertools
import math
import os
import re

from dreambooth_jax.storybook import world

SPECIAL_TOKENS = ('<pad>', '</s>', '<unk>')  # in the order of T5, so their ids are 0, 1, 2
WORD_START = '\u2581'
MAX_LENGTH = 77  # IFPipeline pads and truncates to this length
CLIP_SPECIAL_TOKENS = ('<|startoftext|>', '<|endoftext|>')
CLIP_WORD_END = '</w>'
CLIP_MAX_LENGTH = 32  # the longest captions have 28 tokens
QWEN_SPECIAL_TOKENS = ('<|endoftext|>', '<|im_start|>', '<|im_end|>')
QWEN_SPACE = '\u0120'  # how byte-level tokenizers write a space, which belongs to the word behind it
QWEN_MAX_LENGTH = 32  # 8 of them belong to the form of a chat

# What the template of published tokenizers does with one message and the answer to come.
QWEN_CHAT_TEMPLATE = (
    "{% for turn in messages %}<|im_start|>{{ turn['role'] }}\n{{ turn['content'] }}<|im_end|>\n{% endfor %}"
    '{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}'
)

GRAMMAR = (
    'a the of in on with and an to from at is photo image painting drawing style seen view top bottom side back '
    'front background wearing'
).split()

# Words that a user may type in addition to those of the world; captions may use them too.
ENGLISH = (
    'image photograph portrait sketch illustration artwork render snapshot pic shot closeup close up art scene '
    'cover it its this that these those my your his her our their i you he she we they me him them who what which '
    'where when are was were be been being has have had do does did will would can could should may not no yes or '
    'but if so than then as by for into over under near beside behind between before after above below inside '
    'outside around through off out down away next very more most less some any all each every other another same '
    'such only just also too one two three four five six seven eight nine ten first second many few several pair '
    'group both half big small large little tiny huge tall short long wide round square flat old new young good bad '
    'nice beautiful pretty cute funny happy sad angry sleepy calm scary strange simple plain clean dirty dry warm '
    'cold hot soft hard heavy bright dark light colorful colourful grey golden silver gold beige cream striking '
    'colour color coloured colored pattern patterned spots stripes checks dots dotted made full empty broken open '
    'closed real famous man woman boy girl person people child baby family friend king queen hand head face eye '
    'eyes ear ears nose mouth leg legs tail fur body animal animals bird horse cow pig sheep fish lion tiger '
    'elephant panda koala hippo rabbit fox frog owl mouse puppy kitten pet dogs cats sun moon star stars sky cloud '
    'clouds rain wind storm night day morning evening sunset sunrise spring summer winter river lake sea island '
    'sand stone rock hill desert garden park flower flowers leaf plant trees forests fire ice room table chair bed '
    'sofa door window wall kitchen box book bottle cup plate bag ball hats shoe shoes shirts coat dress clothes '
    'bridge tower castle church building home school shop town village boat ship train bus bike bicycle plane food '
    'bread cheese apple banana cake fruit coffee tea paper metal glass plastic wool cotton leather clay looking '
    'sitting standing running walking jumping sleeping lying playing eating drinking flying swimming reading '
    'holding riding barking smiling crying laughing dancing facing posing cross species version expression shape '
    'shaped pose viewed photographed painted drawn worn dressed carrying studio empty center centre middle left '
    'right corner edge watercolor oil pencil pixel poster statue sculpture sunglasses bear cap helmet tie collar '
    'crown boots toys lamp candles vases teapots backpacks bowls cans clocks sneakers'
).split()

# These mean nothing to an English reader, nor to the model before fine-tuning; the first is the rarest. None is a word,
# a name or a common abbreviation. Users of other trainers know `sks` and `ohwx`.
RARE_TOKENS = (
    'sks ohwx xyz zwx vbn qxj zqv xjq wvx qzk jxv vqz kzx xqw zvj qjx wqz vxk jqz xkv zxq qvw jzx kqv vjw xzq wzj '
    'qkx zjv vwq xvz jkq qwz kxj zkw wjx vzq xwj qxv jvz hxq zqk vkj xqh wkz pqx zgv qhj vxg jwq bxz xpv qgz zhw kvx '
    'gqj xbw vqp jgx zpk qbv fxz wgq xhv zfj kqp vgz jxb qfw xgk pzv zbq hvj wxp qjf vzh xfq jpz gxw bqz zrv xqr vtz '
    'qnx jzt wvz tqx znj qvt xrz ktq rxv njq zxt vqn mxj qzm xmv zwm jmq dxq qdz vdx zjd xkd lqx vlz qzl xjl zlv sxq '
    'qsv zsj vxs jsz czx qcv xcj vjc zqc'
).split()

CHARACTERS = tuple(chr(code) for code in range(ord('!'), ord('~') + 1))  # ASCII without the space

# Log-probabilities. Words are above -9, depending on their rank. A rare token is rarer than one word in 30 000
# (e^-10.3). A character is so rare that no spelling, however short, wins against a token of the whole text.
RARE_SCORES = (-11.9, -10.5)  # scores of the first and the last rare token
WORD_START_SCORE = -9.0
CHARACTER_SCORE = -13.0


def words() -> list[str]:
    """Returns every whole word of the vocabulary once, the most common first."""
    phrases = (
        *GRAMMAR,
        *world.CLASSES,
        *world.COLOURS,
        *world.PATTERNS,
        *world.CONTEXTS,
        *world.ACCESSORIES,
        *world.MATERIALS,
        *world.STYLES,
        *world.VIEWS,
        *world.TOY_KINDS,
        *world.ANIMAL_KINDS,
        *ENGLISH,
    )
    found = (word for phrase in phrases for word in re.findall('[a-z]+', phrase.lower()))
    return list(dict.fromkeys(found))


def pieces() -> list[tuple[str, float]]:
    """Returns the Unigram vocabulary as (piece, log-probability) in the order of ids, special tokens first.

    Raises:
      ValueError: if a rare token is also a word, which would give it a meaning, or occurs twice.
    """
    ordinary = words()
    clash = sorted(set(ordinary) & set(RARE_TOKENS)) or sorted(t for t in RARE_TOKENS if RARE_TOKENS.count(t) > 1)
    if clash:
        raise ValueError(f'RARE_TOKENS holds {clash}, which are words or occur twice; replace them.')
    weights = [1 / (rank + 3) for rank in range(len(ordinary))]  # Zipf-Mandelbrot, so that no word dominates
    total = sum(weights)
    rarest, commonest = RARE_SCORES
    slope = (commonest - rarest) / (len(RARE_TOKENS) - 1)
    return [
        *((token, 0.0) for token in SPECIAL_TOKENS),
        (WORD_START, WORD_START_SCORE),
        *((WORD_START + word, math.log(w / total)) for word, w in zip(ordinary, weights, strict=True)),
        *((WORD_START + token, rarest + slope * i) for i, token in enumerate(RARE_TOKENS)),
        *((character, CHARACTER_SCORE) for character in CHARACTERS),
    ]


def write_tokenizer(folder: str | os.PathLike) -> None:
    """Writes tokenizer.json and tokenizer_config.json into `folder`, as transformers' T5Tokenizer saves them.

    The tokenizer does not lower-case a text. This is done when a prompt is read, in text/tokenize.py or IFPipeline.
    """
    os.environ.setdefault('TRANSFORMERS_NO_ADVISORY_WARNINGS', '1')
    from transformers import T5Tokenizer

    tokenizer = T5Tokenizer(vocab=pieces(), extra_ids=0, model_max_length=MAX_LENGTH)
    tokenizer.save_pretrained(folder)


def write_clip_tokenizer(folder: str | os.PathLike) -> None:
    """Writes the tokenizer of Storybook's CLIP into `folder`: the words as byte-pair merges, in CLIP's files.

    Every word of the world and every rare token is one token; any other text is spelt with shorter ones. A prompt has
    at most CLIP_MAX_LENGTH tokens, as the longest captions need no more.
    """
    os.environ.setdefault('TRANSFORMERS_NO_ADVISORY_WARNINGS', '1')
    from transformers import CLIPTokenizer

    vocabulary, merges = clip_vocabulary()
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=CLIP_MAX_LENGTH)
    tokenizer.save_pretrained(folder)


def clip_vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Returns CLIP's vocabulary {piece: id}, the start and the end of a text last, and its merges, the first first.

    The merges are those that byte-pair encoding finds in a list of the words, each as often as any other: the most
    common pair of neighbours becomes one piece, ties in the order of the alphabet, until every word is one piece.
    """
    from tokenizers.pre_tokenizers import ByteLevel

    merges = _merges([[*word[:-1], word[-1] + CLIP_WORD_END] for word in (*words(), *RARE_TOKENS)])
    # Its alphabet are the 256 bytes, so any text can be spelt.
    single = [symbol + end for end in ('', CLIP_WORD_END) for symbol in sorted(ByteLevel.alphabet())]
    ordered = [*single, *(first + second for first, second in merges), *CLIP_SPECIAL_TOKENS]
    return {piece: index for index, piece in enumerate(ordered)}, merges


def write_qwen_tokenizer(folder: str | os.PathLike) -> None:
    """Writes the tokenizer of Storybook's flow model into `folder`: the words as byte-pair merges, in Qwen's files.

    Every word of the world and every rare token is one token behind a space, and so are the words that begin a caption
    without one. A prompt has at most QWEN_MAX_LENGTH tokens, the form of a chat (text/chat.py) included.
    """
    os.environ.setdefault('TRANSFORMERS_NO_ADVISORY_WARNINGS', '1')
    from transformers import Qwen2Tokenizer

    vocabulary, merges = qwen_vocabulary()
    tokenizer = Qwen2Tokenizer(
        vocab=vocabulary,
        merges=merges,
        eos_token='<|im_end|>',
        pad_token='<|endoftext|>',
        unk_token='<|endoftext|>',
        extra_special_tokens=['<|im_start|>'],
        model_max_length=QWEN_MAX_LENGTH,
        padding_side='right',
    )
    tokenizer.chat_template = QWEN_CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)


def qwen_vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Returns the vocabulary {piece: id} of Storybook's Qwen tokenizer, special tokens last, and its merges."""
    from tokenizers.pre_tokenizers import ByteLevel

    first = (*GRAMMAR, 'user', 'assistant')  # what may come without a space before it
    merges = _merges([[*word] for word in first] + [[QWEN_SPACE, *word] for word in (*words(), *RARE_TOKENS)])
    ordered = [*sorted(ByteLevel.alphabet()), *(one + two for one, two in merges), *QWEN_SPECIAL_TOKENS]
    return {piece: index for index, piece in enumerate(dict.fromkeys(ordered))}, merges


def _merges(pieces: list[list[str]]) -> list[tuple[str, str]]:
    """Returns the merges that byte-pair encoding finds in words, each as often as any other."""
    merges = []
    while True:
        counts = collections.Counter(pair for word in pieces for pair in itertools.pairwise(word))
        if not counts:
            break
        pair = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(pair)
        pieces = [_merged(word, pair) for word in pieces]
    return merges


def _merged(word: list[str], pair: tuple[str, str]) -> list[str]:
    """The pieces of a word after one merge, from left to right."""
    found = []
    for piece in word:
        # A piece that was just made by this merge is never the first half of the same pair.
        if found and (found[-1], piece) == pair:
            found[-1] += piece
        else:
            found.append(piece)
    return found


# What writes the tokenizer for a text encoder, by the model_type in its config.json.
WRITERS = {'t5': write_tokenizer, 'qwen3': write_qwen_tokenizer}
