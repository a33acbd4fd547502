"""Checks what PyTorch's libraries report while they load files that we wrote."""

import contextlib
import logging
import warnings


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
