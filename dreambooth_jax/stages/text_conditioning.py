"""What a UNet is told about a prompt, made from the tokenizers and text encoders of each family of pipelines.

"Text", here and in the stages, is the dictionary of keyword arguments that the UNet takes for a prompt. Its arrays have
one entry per prompt:

    encoder_hidden_states f32[N, L, D]                       every family
    added_cond {text_embeds f32[N, P], time_ids f32[N, 6]}   Stable Diffusion XL

Sources: encode_prompt of diffusers' IFPipeline, StableDiffusionPipeline and StableDiffusionXLPipeline.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dreambooth_jax.text.tokenize import MAX_LENGTH, Tokenizer
from dreambooth_jax.weights.errors import WeightsError
from dreambooth_jax.weights.pipeline import Pipeline, kind_of

Text = dict[str, Any]
Tokens = dict[str, Any]
_TOKEN_TABLES = ('token_embedding.embedding', 'shared.embedding')


@dataclasses.dataclass(frozen=True, eq=False)
class TextConditioning:
    """Reads prompts for one pipeline.

    `tokens` runs on the host. The call takes its result; it is pure and may be traced.

    Attributes:
      encoders: component -> (apply, 't5' or 'clip'), in the order in which their states are concatenated.
      tokenizers: component -> tokenizer.
      clip_skip: how many of CLIP's last layers are left out, as diffusers counts (1: the output of the last but one is
        used).
      size: (height, width) of the images, which Stable Diffusion XL is told; None for other families.
      empty_is_zero: whether the text of the empty prompt is zeros (Stable Diffusion XL).
      table_sizes: component -> how many tokens its text encoder knows.
    """

    encoders: Mapping[str, tuple[Callable, str]]
    tokenizers: Mapping[str, Tokenizer]
    clip_skip: int = 0
    size: tuple[int, int] | None = None
    empty_is_zero: bool = False
    table_sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(
        cls,
        pipeline: Pipeline,
        *,
        size: int,
        clip_skip: int = 0,
        tokenizers: Mapping[str, Tokenizer] | None = None,
    ) -> 'TextConditioning':
        """Returns the way in which `pipeline` reads prompts for images of side `size`.

        Args:
          size: in pixels.
          clip_skip: as in the attributes.
          tokenizers: component -> its tokenizer, if they are already open; None opens them.
        Raises: WeightsError if a text encoder or a tokenizer is missing, if they do not fit each other, or if clip_skip
          leaves out every layer.
        """
        # Each encoder's kind decides how it is called, and the size of its token table which ids it can look up: JAX
        # does not report an id that is too high.
        encoders, table_sizes = {}, {}
        for component, network in pipeline.text_encoders.items():
            is_t5 = kind_of(component, network.config).model_type == 't5'
            encoders[component] = (network.apply, 't5' if is_t5 else 'clip')
            table_sizes[component] = next(
                len(value) for name, value in network.params.items() if name.endswith(_TOKEN_TABLES)
            )
            layers = network.config.get('num_hidden_layers', 12)
            if not is_t5 and clip_skip >= layers:
                raise WeightsError(
                    f'clip_skip is {clip_skip} but the {component} of {pipeline.name} has {layers} layers.'
                )
        # Every text encoder that the family needs must be there, and each must have a tokenizer.
        if tokenizers is None:
            tokenizers = {
                component: Tokenizer.load(folder, added=pipeline.added_tokens)
                for component, folder in pipeline.tokenizer_folders.items()
            }
        absent = [part for part in pipeline.family.networks if part.startswith('text') and part not in encoders]
        absent += [f'tokenizer of the {component}' for component in encoders if component not in tokenizers]
        if absent:
            raise WeightsError(f'{pipeline.name} has no {absent[0]}; give a complete pipeline.')
        # A tokenizer of another model would give ids and lengths that the encoder reads without an error, as nonsense.
        for component, (_, kind) in encoders.items():
            tokenizer, config = tokenizers[component], pipeline.text_encoders[component].config
            longest = config.get('max_position_embeddings', MAX_LENGTH) if kind == 'clip' else tokenizer.max_length
            if tokenizer.kind != kind or tokenizer.max_length > longest:
                reads = f'{kind.upper()} prompts' + (f' of {longest} tokens' if kind == 'clip' else '')
                raise WeightsError(
                    f'{pipeline.name}: its {component} reads {reads}, but its tokenizer makes {tokenizer.kind.upper()} '
                    f'prompts of {tokenizer.max_length}; give the tokenizer of this model.'
                )
        is_xl = pipeline.class_name == 'StableDiffusionXLPipeline'
        return cls(
            encoders,
            tokenizers,
            clip_skip,
            (size, size) if is_xl else None,
            is_xl and bool(pipeline.option('force_zeros_for_empty_prompt')),
            table_sizes,
        )

    def tokens(self, prompts: Sequence[str], size: tuple[int, int] | None = None) -> Tokens:
        """Returns what the call needs of N prompts.

        Args:
          size: (height, width) of the images; None: the `size` of this object.
        Returns: component -> {ids i32[N, L], mask i32[N, L]}; for Stable Diffusion XL also time_ids f32[N, 6] (original
          height and width, the crop's top and left, target height and width) and given f32[N], 0 for the empty prompt
          and 1 for others.
        Raises: WeightsError for a token that a text encoder does not know.
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
        if self.size is not None:
            # The values of a whole, uncropped image at its own size, because images are generated with these.
            height, width = size or self.size
            tokens['time_ids'] = np.tile(np.array([height, width, 0, 0, height, width], np.float32), (len(prompts), 1))
            tokens['given'] = np.array([float(bool(prompt)) for prompt in prompts], np.float32)
        return tokens

    def __call__(self, params: Mapping[str, Any], tokens: Mapping[str, Any]) -> Text:
        """Returns the text of N prompts.

        Args:
          params: component -> the parameters of its text encoder; other components are ignored.
          tokens: the result of `tokens`, or a selection of its prompts.
        """
        states, pooled = [], None
        for component, (apply, kind) in self.encoders.items():
            ids, mask = tokens[component]['ids'], tokens[component]['mask']
            if kind == 't5':
                states.append(apply(params[component], ids, mask))
            elif self.size is None:
                # Padding is not masked: the models were trained to read it.
                states.append(apply(params[component], ids, skip=self.clip_skip)[0])
            else:
                encoded, pooled = apply(params[component], ids, skip=1 + self.clip_skip, final_norm=False)
                states.append(encoded)
        text: Text = {'encoder_hidden_states': jnp.concatenate(states, axis=-1) if len(states) > 1 else states[0]}
        if self.size is not None:
            text['added_cond'] = {'text_embeds': pooled, 'time_ids': tokens['time_ids']}
        if self.empty_is_zero:
            given = tokens['given']
            text['encoder_hidden_states'] *= given[:, None, None]
            text['added_cond']['text_embeds'] *= given[:, None]
        return jax.tree.map(lambda array: array.astype(jnp.float32), text)


def take(tree: Any, indices: Any) -> Any:
    """Returns the entries `indices` i[B] of every array of a text, or of tokens."""
    return jax.tree.map(lambda array: array[indices], tree)
