"""Says in one sentence what a file is that is not a LoRA of this model: another kind of adapter, or of another model.

The kind of adapter is recognised by the endings of tensor names. The model is recognised by the names of its layers and
by the width of the text states that its attention takes.

Source: LyCORIS (KohakuBlueleaf/LyCORIS lycoris/modules); ComfyUI comfy/weight_adapter; PEFT 0.21 tuners; OneTrainer.
"""

import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from dreambooth_jax.weights.original_facts import OriginalLayout

READ = 'LoRA, LoCon and DoRA'
_MERGE = 'merge it into its model in the program that made it, and give that model'
_OTHER_MODEL = 'use one that was trained on a model of the same kind'

# (pattern to search in a tensor's name, what the file is, what to do). The first pattern that any name matches counts.
# Models come before kinds of adapters, because merging, the remedy for a LoKr, cannot help if it is of another model.
_KINDS = tuple(
    (re.compile(pattern), kind, remedy)
    for pattern, kind, remedy in (
        (
            r'^(model\.diffusion_model|first_stage_model|cond_stage_model|conditioner\.embedders)\.',
            'a whole model and no adapter',
            'give it as the model itself',
        ),
        (
            r'^(lora_unet_|transformer\.|diffusion_model\.|lora_transformer_)?(double_blocks|single_blocks|'
            r'single_transformer_blocks)[._]',
            'a LoRA of Flux',
            _OTHER_MODEL,
        ),
        (r'joint_(transformer_)?blocks[._]', 'a LoRA of Stable Diffusion 3', _OTHER_MODEL),
        (
            r'^(base_model\.model\.)?(transformer\.|lora_transformer_|(lora_unet_|diffusion_model\.)(blocks|layers)[._])',
            'a LoRA of a model that has a transformer in place of the UNet, such as Stable Diffusion 3 or Flux',
            _OTHER_MODEL,
        ),
        (r'(^|_)lllite_', 'a ControlNet-LLLite and no LoRA', 'leave it out'),
        (
            r'^bundle_emb\.',
            'a LoRA with a textual inversion inside (bundle_emb)',
            'save the two apart where it was trained, and give the embedding to sample as --embedding',
        ),
        (r'\.hada_[wt]\d', 'a LoHa', _MERGE),
        (r'\.lokr_[wt]\d', 'a LoKr', _MERGE),
        (r'\.(oft_blocks|oft_diag|oft_[RQ]|boft_[A-Z])(\.|$)', 'an OFT or BOFT', _MERGE),
        (r'\.on_input$|\.ia3_l(\.|$)', 'an (IA)^3', _MERGE),
        (r'\.[ab][12]\.weight$', 'a GLoRA', _MERGE),
        (r'\.lora_embedding_[AB]', 'a LoRA of a token table', _MERGE),
        (r'\.lora_[AB]\.(\w+\.)?bias$', 'a LoRA whose matrices have biases (lora_bias of PEFT)', _MERGE),
        (
            r'\.(diff|diff_b|w_norm|b_norm|set_weight)$',
            'an adapter that changes whole tensors, biases or norms (.diff, .diff_b, .w_norm)',
            _MERGE,
        ),
    )
)
_INVERSIONS = ({'emb_params'}, {'clip_l', 'clip_g'}, {'clip_g'}, {'clip_l'}, {'string_to_param.*'})
_TEXT_KEY = re.compile(r'attn2[._](processor\.)?to_k[._](lora_A|lora_down|lora\.down)\.')
_TEXT_KERNEL = 'attn2.to_k.kernel'


def foreign(
    tensors: Mapping[str, np.ndarray],
    unused: Iterable[str],
    networks: Mapping[str, Mapping[str, np.ndarray]],
    layouts: Sequence[OriginalLayout] = (),
) -> str | None:
    """Describes what a file is that cannot be read, and what to do.

    Args:
      tensors: {name: array}, all tensors of the file.
      unused: names of the tensors that belong to no layer of the model.
      networks: {component: parameters} of the model.
      layouts: the generations of models that are called by their names, in the order in which they are tried.

    Returns:
      The rest of a sentence that begins with the name of the file; None if the file is not recognised.
    """
    unused = tuple(unused)
    if set(tensors) in _INVERSIONS:
        return 'is a textual inversion and no LoRA; give it to sample as --embedding.'
    for pattern, kind, remedy in _KINDS:
        if any(pattern.search(name) for name in unused):
            return f'is {kind}, which is not read here ({READ} are); {remedy}.'
    theirs = {value.shape[1] for name, value in tensors.items() if _TEXT_KEY.search(name) and value.ndim > 1}
    kernels = (
        value.shape for params in networks.values() for name, value in params.items() if name.endswith(_TEXT_KERNEL)
    )
    ours = {shape[0] for shape in kernels}
    if len(theirs) == len(ours) == 1 and theirs != ours:
        return f'is a LoRA of {_model(*theirs, layouts)}, but this model is {_model(*ours, layouts)}; {_OTHER_MODEL}.'
    of_second = any(re.match(r'lora_te2_|text_encoder_2\.|text_encoders\.clip_g\.', name) for name in unused)
    if of_second and 'text_encoder_2' not in networks:
        return f'is a LoRA of a model with two text encoders, as Stable Diffusion XL has; {_OTHER_MODEL}.'
    return None


def _model(width: int, layouts: Sequence[OriginalLayout]) -> str:
    text = f'text of width {width}'
    # The plainest models are tried last, and of several that read the same text they are the ones to name.
    title = next((layout.title for layout in reversed(layouts) if layout.text_width == width), None)
    return f'{title} ({text})' if title else f'a model that reads {text}'
