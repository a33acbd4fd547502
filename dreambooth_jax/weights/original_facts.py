"""What is published about one generation of models and cannot be read from the tensors of a single file.

A single file of the original layout holds neither configurations nor tokenizers. The readers and writers of such files
(single_file.py, original_configs.py, original_layout.py) know no generation by name: they take these facts, which the
families state (families/*_files.py), as arguments. A sequence of layouts is in the order in which they are tried.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Shapes = Mapping[str, tuple[int, ...]]
Config = dict[str, Any]
Configs = Mapping[str, Mapping[str, Any]]

EPSILON, V_PREDICTION = PREDICTION_TYPES = ('epsilon', 'v_prediction')
UNET_PREFIX = 'model.diffusion_model.'
# Noise schedule and sampling entries that all published schedulers of the original layout have in common.
BETAS = {'beta_schedule': 'scaled_linear', 'beta_start': 0.00085, 'beta_end': 0.012, 'num_train_timesteps': 1000}
SAMPLING = {'clip_sample': False, 'set_alpha_to_one': False, 'skip_prk_steps': True, 'steps_offset': 1}


def layouts_of(families: Sequence[Any]) -> tuple['OriginalLayout', ...]:
    """Returns the layouts of all families, in the order in which they are tried: the later families come first.

    Args:
      families: weights.pipeline.Layout.
    """
    return tuple(layout for family in reversed(families) for layout in family.originals)


def plain_scheduler(prediction_type: str) -> Config:
    """Returns the scheduler_config.json of Stable Diffusion 1.x and 2.x, without its prediction_type."""
    name = 'DDIMScheduler' if prediction_type == V_PREDICTION else 'PNDMScheduler'
    return {**BETAS, **SAMPLING, '_class_name': name}


def no_entries(sizes: Callable[[str], tuple[int, ...]], prediction_type: str) -> Config:
    """Returns no further entries of a UNet's configuration."""
    return {}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class OriginalLayout:
    """A generation of models that is published as single files of the original layout.

    Attributes:
      title: its name in messages.
      matches: whether a file with tensors of these names and shapes holds such a model; asked in the readers' order.
      fits: whether networks with these configurations ('unet' and 'text_encoder') are of this generation.
      text_prefixes: {text encoder: prefix of the names of its tensors}. Prefixes that end in '.model.' have OpenCLIP's
        own names, those that end in '.transformer.' the names of transformers.
      projected: the text encoders that have a projection and are stored with all their layers.
      pad_tokens: {tokenizer: padding token}. All are CLIPTokenizers with one vocabulary.
      model_index: the class of the pipeline and its options.
      in_channels: channels that the UNet takes.
      text_width: width of the text states that the published UNet takes.
      vae: entries of the VAE's configuration that leave no trace in tensors.
      vae_reduction: side in pixels of the model's images divided by that of the VAE's training images.
      heads: number of heads in every attention of the UNet; None if every head is 64 wide.
      unet: (shape of a tensor of the UNet by name, prediction type) -> further entries of the UNet's configuration.
      only_cross_attention: whether all blocks of the UNet but the last have no self-attention.
      resolutions: {prediction type: side in pixels of the published model's images}.
      scheduler: prediction type -> scheduler_config.json, without prediction_type.
      further_schedulers: {folder: scheduler_config.json} of additional schedulers.
      default_prediction_type: what a file predicts that does not say it.
      ask_prediction_type: for generations of both prediction types, a sentence's end that says which published models
        have which; a file must then say what it predicts. None for the others.
      published_prediction_types: {stem of a published file: prediction type}.
      writes_markers: whether empty tensors in its files say that it predicts v or ends in pure noise.
      architectures: {prediction type: id in the model metadata standard}; without an entry, that of EPSILON counts.
      kohya_versions: {prediction type: ss_base_model_version of kohya's trainer}; empty if kohya does not train it.
      kohya_is_v2: the value of kohya's ss_v2.
      kohya_original_names: whether `lora_kohya` names layers as the original code does, and numbers text encoders.
    """

    title: str
    matches: Callable[[Shapes], bool]
    fits: Callable[[Configs], bool]
    text_prefixes: Mapping[str, str]
    projected: tuple[str, ...] = ()
    pad_tokens: Mapping[str, str]
    model_index: Mapping[str, Any]
    in_channels: int = 4
    text_width: int
    vae: Mapping[str, Any]
    vae_reduction: int = 1
    heads: int | None = None
    unet: Callable[[Callable[[str], tuple[int, ...]], str], Config] = no_entries
    only_cross_attention: bool = False
    resolutions: Mapping[str, int]
    scheduler: Callable[[str], Config] = plain_scheduler
    further_schedulers: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    default_prediction_type: str = EPSILON
    ask_prediction_type: str | None = None
    published_prediction_types: Mapping[str, str] = dataclasses.field(default_factory=dict)
    writes_markers: bool = False
    architectures: Mapping[str, str]
    kohya_versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    kohya_is_v2: bool = False
    kohya_original_names: bool = False

    def architecture(self, prediction_type: str) -> str:
        """Returns the id of a model that predicts this in the model metadata standard."""
        return self.architectures.get(prediction_type, self.architectures[EPSILON])


def holds_prefix(prefix: str) -> Callable[[Shapes], bool]:
    """Returns the function that says whether any tensor's name begins with `prefix`."""
    return lambda shapes: any(name.startswith(prefix) for name in shapes)


def activation_of_clip(configs: Configs) -> str | None:
    """Returns the hidden_act of a CLIP text encoder; None if 'text_encoder' is no CLIP."""
    text = configs['text_encoder']
    return None if 'd_model' in text else {'hidden_act': 'quick_gelu', **text}['hidden_act']
