"""What generates images, as their files say it: data/provenance.py writes it."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dreambooth_jax.data import provenance
from dreambooth_jax.data.fingerprints import file_hash
from dreambooth_jax.data.provenance import AddedFile, Facts
from dreambooth_jax.generation.cascade import Cascade
from dreambooth_jax.generation.options import SamplingOptions
from dreambooth_jax.weights import hub
from dreambooth_jax.weights.pipeline import Pipeline


class Model(NamedTuple):
    """What one stage is called, and the sha256 of its weights; None: unknown."""

    name: str | None
    weights_hash: str | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Origin:
    """A model and a way of sampling, of which images say that they come from them.

    Attributes:
      options: how they are sampled.
      metadata: 'full'; or 'mark': images say nothing of it (config.SamplesConfig.metadata).
      base: the model of the base stage.
      super_resolution: that of the second stage; None: there is none.
      clip_skip: number of last CLIP layers that the base stage skips.
      adapters: LoRA files that are merged into the model, whose hash is that of before.
      embeddings: textual inversions that are added to it.
    """

    options: SamplingOptions
    metadata: str = provenance.FULL
    base: Model = Model(None, None)
    super_resolution: Model | None = None
    clip_skip: int = 0
    adapters: Sequence[AddedFile] = ()
    embeddings: Sequence[AddedFile] = ()

    @classmethod
    def of(cls, cascade: Cascade, options: SamplingOptions, metadata: str) -> 'Origin':
        """Returns the origin of what a cascade generates.

        If images are to say it, the weights are hashed, about a second for each GB; a pipeline keeps its hash.
        """
        if metadata == provenance.MARK:
            return cls(options=options, metadata=metadata)
        second = cascade.super_resolution if options.super_resolution else None
        return cls(
            options=options,
            metadata=metadata,
            base=_model(cascade.base),
            super_resolution=None if second is None else _model(second),
            clip_skip=cascade.clip_skip,
        )

    def with_files(
        self, loras: Sequence[tuple[str | os.PathLike, float]], embeddings: Sequence[str | os.PathLike]
    ) -> 'Origin':
        """Returns the same of images for which these files are added to the model.

        Args:
          loras: LoRA files and their strengths.
          embeddings: textual inversions.

        Raises:
          OSError: if a file cannot be read.
        """
        if self.metadata == provenance.MARK:
            return self
        adapters = [_added(path, scale) for path, scale in loras]
        return dataclasses.replace(self, adapters=adapters, embeddings=[_added(path) for path in embeddings])

    def facts(
        self, prompt: str, number: int | None = None, *, last: bool = True, step: int | None = None
    ) -> Facts | None:
        """Returns what one image was generated with; None if its file is to have the mark alone.

        Args:
          prompt: its prompt; of a sheet of several, one on each line.
          number: its image number, which selects its noise together with the seed; None: of a sheet.
          last: whether it comes from the last stage; False: from the base stage, whatever follows.
          step: the step of the training that the model is at; None: it is not training.
        """
        if self.metadata == provenance.MARK:
            return None
        options = self.options
        values: dict[str, Any] = {'Image number': number, 'Training step': step}
        if self.clip_skip:
            values['Clip skip'] = self.clip_skip + 1  # AUTOMATIC1111 counts the layer whose states are taken from 1
        if last and self.super_resolution is not None:
            values |= {
                'Super-resolution model': self.super_resolution.name,
                'Super-resolution model hash': self.super_resolution.weights_hash,
                'Super-resolution steps': options.second_steps,
                'Super-resolution CFG scale': f'{options.second_guidance_scale:g}',
                'Super-resolution noise level': options.noise_level,
            }
        return Facts(
            prompt=prompt,
            negative_prompt=options.negative_prompt,
            steps=options.steps,
            sampler=options.sampler,
            guidance_scale=options.guidance_scale,
            seed=options.seed,
            model=self.base.name,
            model_hash=self.base.weights_hash,
            adapters=self.adapters,
            embeddings=self.embeddings,
            more={name: value for name, value in values.items() if value is not None},
        )


def _added(path: str | os.PathLike, scale: float | None = None) -> AddedFile:
    return AddedFile(Path(path).stem, file_hash(Path(path)), scale)


def _model(pipeline: Pipeline) -> Model:
    return Model(hub.name_of(pipeline.folder), pipeline.weights_hash)
