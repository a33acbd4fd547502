"""Where the tests run: on the CPU, shown to JAX as four devices, without the network, compiled programs kept.

All of it is set before anything imports jax, and only where the caller has not set it already. A test that is about one
device says so: Pmap(jax.devices()[:1]). A program started as a process of its own inherits all of it.
"""

import gc
import importlib.metadata
import os
import tempfile
from pathlib import Path

from dreambooth_jax.system import program_cache

XLA_FLAGS = {
    '--xla_force_host_platform_device_count': '4',
    # Tests compile much and compute little: unoptimised code is ready in half the time and runs a little slower.
    '--xla_backend_optimization_level': '0',
}
# The older way to make code of fused operations, in one piece instead of many that are compiled side by side: together
# they take a third of the time. Later versions may not know these flags, and XLA ends at a flag that it does not know.
FAST_CODE = {'--xla_cpu_use_fusion_emitters': 'false', '--xla_cpu_parallel_codegen_split_count': '1'}
if importlib.metadata.version('jaxlib').startswith('0.10.'):
    XLA_FLAGS |= FAST_CODE


def _cache_folder() -> Path:
    """The user's cache, or a temporary folder where there is none to write to."""
    folder = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'dreambooth_jax' / 'tests'
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        folder = Path(tempfile.gettempdir()) / 'dreambooth_jax_tests'
    program_cache.clean(folder)
    return folder


given = os.environ.get('XLA_FLAGS', '')
ours = [f'{name}={value}' for name, value in XLA_FLAGS.items() if name not in given]
os.environ['XLA_FLAGS'] = ' '.join([given, *ours]).strip()
for name, value in {
    'JAX_PLATFORMS': 'cpu',
    'JAX_COMPILATION_CACHE_DIR': str(_cache_folder()),
    'JAX_COMPILATION_CACHE_MAX_SIZE': str(2**30),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.1',
    'OMP_NUM_THREADS': '1',  # PyTorch's threads would only wait for each other on images this small
    'HF_HUB_OFFLINE': '1',
    'TRANSFORMERS_OFFLINE': '1',
}.items():
    os.environ.setdefault(name, value)
# The slow files that take longest, the longest first: begun last, one of them would keep a single worker busy.
LONGEST = (
    'test_kills.py',
    'test_train_hosts.py',
    'test_flow_runs.py',
    'test_best_checkpoint.py',
    'test_options.py',
    'test_train.py',
    'test_browser.py',
    'test_quantised_families.py',
    'test_fuzz.py',
    'test_signals.py',
    'test_unet.py',
    'test_device_memory.py',
    'test_speed.py',
    'test_lora_run.py',
    'test_notebook.py',
    'test_quantised_run.py',
    'test_full_disk.py',
    'test_pretrain.py',
)


def pytest_collection_modifyitems(items):
    rank = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))  # all others stay in their order


def pytest_collection():
    gc.disable()  # nothing is thrown away while modules are imported


def pytest_collection_finish():
    """Leaves what was imported out of every later search for garbage, which would look at half a million objects."""
    gc.collect()
    gc.freeze()
    gc.enable()
