"""What is said: errors of ours in one sentence, and reports of PyTorch's libraries while they load files of ours."""

import contextlib
import logging
import warnings

import pytest

from dreambooth_jax.weights.errors import WeightsError


@contextlib.contextmanager
def nothing_reported(*allowed: str):
    """Fails if diffusers, transformers or peft warn, except with texts that begin with one of `allowed`."""
    records = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: records.append(record.getMessage())
    loggers = [logging.getLogger(name) for name in ('diffusers', 'transformers', 'peft')]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        with warnings.catch_warnings(record=True) as warned:
            yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
    records += [str(warning.message) for warning in warned if warning.category in (UserWarning, RuntimeWarning)]
    assert [text for text in records if not text.startswith(allowed)] == []


def sentence_of(read, *arguments, **options):
    """The WeightsError of a call, which must be one sentence."""
    with pytest.raises(WeightsError) as error:
        read(*arguments, **options)
    assert '\n' not in str(error.value) and str(error.value).endswith('.')
    return str(error.value)
