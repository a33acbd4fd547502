"""DreamBooth in JAX and Flax NNX."""

import sys

if sys.argv[:1] == ['-m'] and any(word.startswith(f'{__name__}.') for word in sys.orig_argv):
    # One of the programs is starting. Ctrl-C must end it from here on, even during the imports that follow.
    from dreambooth_jax.system import ending, huge_pages

    ending.end_on_signals()
    huge_pages.use()
