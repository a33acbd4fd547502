"""Pipelines put together from parts, by the name of their class."""

from dreambooth_jax.families.family import of_class
from dreambooth_jax.weights.pipeline import Pipeline


def pipeline(class_name, *, scheduler, tokenizer=None, **parts) -> Pipeline:
    """Returns a pipeline; `tokenizer` is the folder for all its text encoders, networks are given by their names."""
    family = of_class(class_name)
    components = {name: parts.pop(name) for name in family.networks if name in parts}
    tokenizers = {} if tokenizer is None else dict.fromkeys(family.tokenizers, tokenizer)
    return Pipeline(family=family, scheduler=scheduler, components=components, tokenizers=tokenizers, **parts)
