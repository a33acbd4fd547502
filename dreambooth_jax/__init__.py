"""DreamBooth in JAX and Flax NNX."""

import gc
import sys

if sys.argv[:1] == ['-m'] and any(word.startswith(f'{__name__}.') for word in sys.orig_argv):
    # One of the programs is starting. Ctrl-C must end it from here on, even during the imports that follow.
    from dreambooth_jax.system import ending, huge_pages

    ending.end_on_signals()
    huge_pages.use()
    # Otherwise Python searches for garbage after every 700 new objects, and among all old ones again and again. Imports
    # and tracing make a million objects, hardly any of them garbage: a tenth of the time in which a run starts.
    gc.set_threshold(20_000, 10, 10)
