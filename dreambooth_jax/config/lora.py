"""The settings of LoRA."""

import dataclasses
from typing import Literal

from dreambooth_jax.config.schema import Config, ConfigError, setting

FrozenDtype = Literal['int8', 'nf4']  # those of models/quantised.py


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraConfig(Config):
    """Low-rank adapters (LoRA, Hu et al. 2021), trained instead of whole networks in every stage that trains."""

    # Rank of the adapters, usually 4 to 64. None: no adapters; whole networks train.
    rank: int | None = setting(None, '> 0')
    # The adapters' output is multiplied by alpha / rank. None: alpha = rank, so the factor is 1.
    alpha: float | None = setting(None, '> 0')
    # The layers that get adapters: regular expressions, each matched against a layer's whole dotted path, such as
    # '.*attn2\.to_k'. Linear layers and convolutions can be named. Every expression must match a layer of at least one
    # network that trains. Empty: those that models of its family are usually adapted in (families/, LORA_TARGETS): of
    # Stable Diffusion and SDXL the attention projections of UNet and text encoders, of DeepFloyd IF all layers, and of
    # flow transformers those of the makers' or diffusers' recipes.
    targets: tuple[str, ...] = ()
    # DoRA (Liu et al. 2024): also learn, for every output of a layer, the norm of its weights.
    dora: bool = False
    # Quantise the frozen kernels of the denoiser and the text encoders, which then need about a quarter ('int8') or an
    # eighth ('nf4', as in QLoRA) of float32's memory on the device and on the host; they are read tensor by tensor.
    # Norms, biases, embeddings and the autoencoder stay as they are. Class images, samples and scores of the training
    # are generated with the quantised kernels too; what is exported are the model's own, with the adapters merged into
    # them. None: kernels have the compute dtype.
    frozen_dtype: FrozenDtype | None = None

    @property
    def scale_alpha(self) -> float:
        """The value of `alpha`, or its default, `rank`."""
        return float(self.rank if self.alpha is None else self.alpha)

    def check(self, path: str) -> None:
        for name in ('alpha', 'targets', 'dora', 'frozen_dtype'):
            value = getattr(self, name)
            if self.rank is None and value:
                raise ConfigError(
                    f'{path}.{name} is {value!r} but {path}.rank is None, so whole networks train; set the rank, or '
                    f'leave {path}.{name} out'
                )
