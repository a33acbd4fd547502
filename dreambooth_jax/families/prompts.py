"""How prompts become the conditioning of a denoiser, with the tokenizers and text encoders of each family.

The conditioning is a dictionary of arrays with one entry per prompt, which a family's `predict` understands:

    encoder_hidden_states f32[N, L, D]                       every family
    encoder_attention_mask f32[N, L], 0 for padding          Z-Image
    pooled f32[N, P]                                         FLUX.1, Stable Diffusion 3
    added_cond {text_embeds f32[N, P], time_ids f32[N, 6]}   Stable Diffusion XL

Sources: encode_prompt of diffusers' IFPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline,
StableDiffusion3Pipeline, FluxPipeline, Flux2KleinPipeline and ZImagePipeline.
"""

import abc
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from dreambooth_jax.text import chat
from dreambooth_jax.text.tokenize import MAX_LENGTH, Tokenizer
from dreambooth_jax.weights.errors import WeightsError
from dreambooth_jax.weights.kinds import kind_of
from dreambooth_jax.weights.pipeline import Pipeline

Conditioning = dict[str, Any]
Tokens = dict[str, Any]
_TOKEN_TABLES = ('token_embedding.embedding', 'shared.embedding', 'embed_tokens.embedding')
_KINDS = {'t5': 't5', 'qwen3': 'qwen'}  # model_type of a text encoder -> kind of its tokenizer, else CLIP's


@dataclasses.dataclass(frozen=True, eq=False)
class PromptEncoder(abc.ABC):
    """Reads prompts for one pipeline; a subclass says in `encode` how its text encoders are called.

    `tokens` runs on the host. The call takes its result; it is pure and may be traced.

    Attributes:
      encoders: component -> apply of its text encoder, in the order in which their states are concatenated.
      tokenizers: component -> tokenizer.
      size: (height, width) of the images in pixels, for families whose denoiser is told.
      clip_skip: how many of CLIP's last layers are left out, as diffusers counts (1: the output of the last but one is
        used).
      table_sizes: component -> how many tokens its text encoder knows.
    """

    kind: ClassVar[str]  # of its tokenizers, 't5', 'clip' or 'qwen'
    template: ClassVar[Callable[[str], str] | None] = None  # how a prompt is put to a language model (text/chat.py)

    encoders: Mapping[str, Callable]
    tokenizers: Mapping[str, Tokenizer]
    size: tuple[int, int] = (0, 0)
    clip_skip: int = 0
    table_sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(
        cls,
        pipeline: Pipeline,
        *,
        size: int,
        clip_skip: int = 0,
        tokenizers: Mapping[str, Tokenizer] | None = None,
    ) -> 'PromptEncoder':
        """Returns the way in which `pipeline` reads prompts for images of side `size`.

        Args:
          size: in pixels.
          clip_skip: as in the attributes.
          tokenizers: component -> its tokenizer, if they are already open; None opens them.

        Raises:
          WeightsError: if a text encoder or a tokenizer is missing, if they do not fit each other, or if clip_skip
            leaves out every layer.
        """
        # The size of the token table says which ids an encoder can look up: JAX does not report one that is too high.
        encoders, table_sizes = {}, {}
        for component, network in pipeline.text_encoders.items():
            encoders[component] = network.apply
            table_sizes[component] = next(
                len(value) for name, value in network.params.items() if name.endswith(_TOKEN_TABLES)
            )
            layers = network.config.get('num_hidden_layers', 12)
            if cls.kind == 'qwen' and clip_skip:
                raise WeightsError(
                    f'clip_skip is {clip_skip} but the {component} of {pipeline.name} is a Qwen3, of which fixed '
                    f'layers are read; set it to 0.'
                )
            if cls.kind == 'clip' and clip_skip >= layers:
                raise WeightsError(
                    f'clip_skip is {clip_skip} but the {component} of {pipeline.name} has {layers} layers.'
                )
        # Every text encoder that the family needs must be there, and each must have a tokenizer.
        if tokenizers is None:
            tokenizers = {
                component: Tokenizer.load(folder, added=pipeline.added_tokens)
                for component, folder in pipeline.tokenizers.items()
            }
        if lengths := cls.lengths(pipeline):
            as_written = {name: tokenizers[name].as_written(lengths[name]) for name in lengths if name in tokenizers}
            tokenizers = {**tokenizers, **as_written}
        family = pipeline.family
        needed = [component for component in family.tokenizers if component not in family.optional]
        absent = [component for component in needed if component not in encoders]
        absent += [f'tokenizer of the {component}' for component in encoders if component not in tokenizers]
        if absent:
            raise WeightsError(f'{pipeline.name} has no {absent[0]}; give a complete pipeline.')
        # A tokenizer of another model would give ids and lengths that the encoder reads without an error, as nonsense.
        for component in encoders:
            tokenizer, config = tokenizers[component], pipeline.text_encoders[component].config
            kind = _KINDS.get(kind_of(component, config).model_type, 'clip')
            longest = config.get('max_position_embeddings', MAX_LENGTH) if kind != 't5' else tokenizer.max_length
            if tokenizer.kind != kind or tokenizer.max_length > longest:
                reads = f'{kind.upper()} prompts' + (f' of {longest} tokens' if kind != 't5' else '')
                raise WeightsError(
                    f'{pipeline.name}: its {component} reads {reads}, but its tokenizer makes {tokenizer.kind.upper()} '
                    f'prompts of {tokenizer.max_length}; give the tokenizer of this model.'
                )
        if cls.template is not None:
            tokenizers = {name: tokenizer.with_template(cls.template) for name, tokenizer in tokenizers.items()}
        options = {'size': (size, size), 'clip_skip': clip_skip, 'table_sizes': table_sizes}
        return cls(encoders, tokenizers, **options, **cls.options_of(pipeline))

    @classmethod
    def options_of(cls, pipeline: Pipeline) -> dict[str, Any]:
        """Returns the values of attributes that a subclass adds."""
        return {}

    @classmethod
    def lengths(cls, pipeline: Pipeline) -> dict[str, int]:
        """Returns {text encoder: tokens of a prompt} for those that read prompts as written, at a length of theirs."""
        return {}

    def tokens(self, prompts: Sequence[str], size: tuple[int, int] | None = None) -> Tokens:
        """Returns what the call needs of N prompts.

        Args:
          size: (height, width) of the images; None: the `size` of this object.

        Returns:
          Component -> {ids i32[N, L], mask i32[N, L]}, and what the family adds.

        Raises:
          WeightsError: for a token that a text encoder does not know.
        """
        tokens: Tokens = {
            component: dict(zip(('ids', 'mask'), self.tokenizers[component](prompts), strict=True))
            for component in self.encoders
        }
        for component, known in self.table_sizes.items():
            if (highest := tokens[component]['ids'].max(initial=0)) >= known:
                raise WeightsError(
                    f'the tokenizer makes the token {highest}, but the {component} knows {known}; give the tokenizer '
                    f'of this model.'
                )
        return tokens

    def __call__(self, params: Mapping[str, Any], tokens: Mapping[str, Any]) -> Conditioning:
        """Returns the conditioning of N prompts, in float32.

        Args:
          params: component -> the parameters of its text encoder; other components are ignored.
          tokens: the result of `tokens`, or a selection of its prompts.
        """
        return jax.tree.map(lambda array: array.astype(jnp.float32), self.encode(params, tokens))

    @abc.abstractmethod
    def encode(self, params: Mapping[str, Any], tokens: Mapping[str, Any]) -> Conditioning:
        """Returns what the call returns, in the dtype of the encoders."""


class T5Prompts(PromptEncoder):
    """Prompts that a T5 reads; padding is masked."""

    kind = 't5'

    def encode(self, params, tokens):
        ((component, apply),) = self.encoders.items()
        return {'encoder_hidden_states': apply(params[component], tokens[component]['ids'], tokens[component]['mask'])}


class ClipPrompts(PromptEncoder):
    """Prompts that one CLIP reads. Padding is not masked: the models were trained to read it."""

    kind = 'clip'

    def encode(self, params, tokens):
        ((component, apply),) = self.encoders.items()
        states, _ = apply(params[component], tokens[component]['ids'], skip=self.clip_skip)
        return {'encoder_hidden_states': states}


class QwenPrompts(PromptEncoder):
    """Prompts that a Qwen3 reads as a question to which it need not think. Only it masks padding, not the denoiser."""

    kind = 'qwen'
    template = staticmethod(chat.asked_without_thought)

    def encode(self, params, tokens):
        ((component, apply),) = self.encoders.items()
        return {'encoder_hidden_states': apply(params[component], tokens[component]['ids'], tokens[component]['mask'])}


class FluxPrompts(PromptEncoder):
    """Prompts of which a T5 gives the states, padding included, and a CLIP the pooled state before any projection."""

    kind = 't5'

    @classmethod
    def of(cls, pipeline, *, size, clip_skip=0, tokenizers=None):
        if clip_skip:
            raise WeightsError(
                f'clip_skip is {clip_skip} but of the CLIP of {pipeline.name} only the pooled state is read, which '
                f'passes through all layers; set it to 0.'
            )
        return super().of(pipeline, size=size, tokenizers=tokenizers)

    @classmethod
    def lengths(cls, pipeline):
        return {'text_encoder_2': pipeline.family.longest_prompt(pipeline)}

    def encode(self, params, tokens):
        (clip, read_pooled), (t5, read) = self.encoders.items()
        _, pooled = read_pooled(params[clip], tokens[clip]['ids'])
        return {'encoder_hidden_states': read(params[t5], tokens[t5]['ids']), 'pooled': pooled}


class MaskedQwenPrompts(QwenPrompts):
    """Prompts that a Qwen3 reads as a question, whose padding the denoiser does not see either."""

    template = staticmethod(chat.asked)

    def encode(self, params, tokens):
        (component,) = self.encoders
        return super().encode(params, tokens) | {'encoder_attention_mask': tokens[component]['mask']}


@dataclasses.dataclass(frozen=True, eq=False)
class XLPrompts(PromptEncoder):
    """Prompts that two CLIPs read, with the pooled state of the second and the size of the image.

    Attributes:
      empty_is_zero: whether the conditioning of the empty prompt is zeros.
    """

    kind = 'clip'

    empty_is_zero: bool = False

    @classmethod
    def options_of(cls, pipeline):
        return {'empty_is_zero': bool(pipeline.option('force_zeros_for_empty_prompt'))}

    def tokens(self, prompts, size=None):
        """Returns also time_ids f32[N, 6] (original height and width, the crop's top and left, target height and width)
        and given f32[N], 0 for the empty prompt and 1 for others.
        """
        tokens = super().tokens(prompts, size)
        # The values of a whole, uncropped image at its own size, because images are generated with these.
        height, width = size or self.size
        tokens['time_ids'] = np.tile(np.array([height, width, 0, 0, height, width], np.float32), (len(prompts), 1))
        tokens['given'] = np.array([float(bool(prompt)) for prompt in prompts], np.float32)
        return tokens

    def encode(self, params, tokens):
        states, pooled = [], None
        for component, apply in self.encoders.items():
            ids = tokens[component]['ids']
            encoded, pooled = apply(params[component], ids, skip=1 + self.clip_skip, final_norm=False)
            states.append(encoded)
        joined = jnp.concatenate(states, axis=-1) if len(states) > 1 else states[0]
        if self.empty_is_zero:
            joined, pooled = joined * tokens['given'][:, None, None], pooled * tokens['given'][:, None]
        return {
            'encoder_hidden_states': joined,
            'added_cond': {'text_embeds': pooled, 'time_ids': tokens['time_ids']},
        }


@dataclasses.dataclass(frozen=True, eq=False)
class SD3Prompts(PromptEncoder):
    """Prompts that two CLIPs and a T5 read, padding included; the states of the T5 follow those of the CLIPs.

    The states of both CLIPs are joined and padded with zeros to the width of the T5's, and so are their pooled states
    joined. Without a T5 its states are zeros.

    Attributes:
      width: of the states.
    """

    kind = 'clip'
    T5, T5_LENGTH = 'text_encoder_3', 256

    width: int = 0

    @classmethod
    def options_of(cls, pipeline):
        return {'width': pipeline.family.text_width(pipeline)}

    @classmethod
    def lengths(cls, pipeline):
        return {cls.T5: cls.T5_LENGTH}

    def encode(self, params, tokens):
        read, states, pooled = dict(self.encoders), [], []
        read_t5 = read.pop(self.T5, None)
        for component, apply in read.items():
            ids = tokens[component]['ids']
            encoded, of_end = apply(params[component], ids, skip=1 + self.clip_skip, final_norm=False)
            states.append(encoded)
            pooled.append(of_end)
        joined = jnp.concatenate(states, axis=-1)
        joined = jnp.pad(joined, ((0, 0), (0, 0), (0, self.width - joined.shape[-1])))
        if read_t5 is None:
            of_t5 = jnp.zeros((len(joined), self.T5_LENGTH, self.width), joined.dtype)
        else:
            of_t5 = read_t5(params[self.T5], tokens[self.T5]['ids'])
        return {
            'encoder_hidden_states': jnp.concatenate([joined, of_t5], axis=1),
            'pooled': jnp.concatenate(pooled, axis=-1),
        }


def take(tree: Any, indices: Any) -> Any:
    """Returns the entries `indices` i[B] of every array of a conditioning, or of tokens."""
    return jax.tree.map(lambda array: array[indices], tree)
