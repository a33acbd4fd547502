"""Images per second of Stable Diffusion 1.5's training step here and in PyTorch's diffusers, on the same device.

  python experiments/speed/training.py
  python experiments/speed/training.py --tiny        # does the script work? Also without an accelerator

The UNet trains, fully or by LoRA of rank 16, on latents and text states that lie on the device, in bfloat16 with f32
master weights; weights are made up. One row of images is an instance and a class image; an image is an image.
README.md says what was measured so far.
"""

import gc
import importlib.metadata
import importlib.util
import itertools
import os
import shlex
import statistics
import sys
import time
from datetime import date
from pathlib import Path

from absl import flags

from dreambooth_jax import program
from dreambooth_jax.config import BaseConfig, ConfigError, DreamBoothConfig, LoraConfig, ParallelConfig
from dreambooth_jax.evaluation import experiment

HERE = Path(__file__).parent
RANK = 16
# TFLOP of a training sample at 512 px: forward 0.803, as much for the gradients of activations and, where they train,
# as much for those of weights. What is computed again (remat) does not count.
TFLOP = {'full': 3 * 0.803, 'lora': 2 * 0.803}
# Dense bf16 peak in TFLOP/s by device kind, from the makers' data sheets; the first that fits counts.
PEAKS = {'H100': 989, 'H200': 989, 'A100': 312, 'TPU v4': 275, 'TPU v5 lite': 197, 'TPU v5': 459, 'TPU v6': 918}
PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'torch', 'diffusers', 'peft')

_BATCH_SIZE = flags.DEFINE_multi_integer('batch_size', [1, 4, 16], 'Instance examples; as many class examples on top.')
_METHOD = flags.DEFINE_multi_enum('method', ['full', 'lora'], ['full', 'lora'], 'What trains.')
_FRAMEWORK = flags.DEFINE_multi_enum(
    'framework',
    ['jax', 'torch', 'torch compiled'],
    ['jax', 'torch', 'torch compiled'],
    "This package; diffusers' UNet as it is; the same through torch.compile.",
)
_REMAT = flags.DEFINE_bool('remat', False, 'Compute activations again in the backward pass, in all frameworks.')
_STEPS = flags.DEFINE_integer('steps', 20, 'Optimizer steps of one repeat.', lower_bound=1)
_STEPS_PER_DISPATCH = flags.DEFINE_integer(
    'steps_per_dispatch', None, "JAX's steps in one call; default: train's, 1 on CPU and else 10.", lower_bound=1
)
_REPEATS = flags.DEFINE_integer('repeats', 5, 'Of every measurement, after one that does not count.', lower_bound=1)
_TINY = flags.DEFINE_bool('tiny', False, 'Networks of a few thousand weights, to try the script out; torch on CPU too.')
_OUTPUT = program.DEFINE_path('output', None, 'Gets training.json; default: the folder of this file; with --tiny none.')


def repeat(run, wait) -> list[float]:
    """Seconds per optimizer step of every repeat.

    Args:
      run: takes the steps of one repeat and returns how many it took. wait: until the device has done them.
    """
    found = []
    for _ in range(1 + _REPEATS.value):  # the first compiles and warms up
        started = time.perf_counter()
        steps = run()
        wait()
        found.append((time.perf_counter() - started) / steps)
    return found[1:]


def measure_jax(program: str, batch_size: int) -> list[float]:
    """Seconds per step of this package."""
    import jax
    import stable_diffusion

    config = DreamBoothConfig(
        model='stable-diffusion-v1-5',
        base=BaseConfig(batch_size=batch_size, train_text_encoder=False),
        lora=LoraConfig(rank=RANK if program == 'lora' else None),
        parallel=ParallelConfig(remat=_REMAT.value, dtype='bfloat16', steps_per_dispatch=_STEPS_PER_DISPATCH.value),
    )
    training = stable_diffusion.make_run(config, _TINY.value)
    placement, at_once = training.placement, min(_STEPS.value, training.budget.steps_per_dispatch)
    step = training.compile(at_once)
    state, frozen = placement.place_state(lambda: stable_diffusion.values(training))
    key = placement.place_state(lambda: jax.random.key(training.seed))
    batch = placement.place_batch(training.batch)
    calls = -(-_STEPS.value // at_once)

    def run():
        nonlocal state
        for _ in range(calls):
            state, _ = step(state, frozen, key, batch)
        return calls * at_once

    return repeat(run, lambda: jax.block_until_ready(state))


def measure_torch(program: str, batch_size: int, compiled: bool) -> list[float]:
    """Seconds per step of the loop of diffusers' train_dreambooth.py or its LoRA variant, on prepared latents."""
    import diffusers
    import torch

    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(**networks()['unet']).to(device)
    if program == 'lora':
        import peft

        unet.requires_grad_(False).to(dtype=torch.bfloat16)
        targets = ['to_q', 'to_k', 'to_v', 'to_out.0']
        unet.add_adapter(peft.LoraConfig(r=RANK, lora_alpha=RANK, target_modules=targets))
    trained = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.data = parameter.data.float()  # adapters are made in the numbers of what they adapt
    if _REMAT.value:
        unet.enable_gradient_checkpointing()
    optimizer = torch.optim.AdamW(trained, lr=5e-6, weight_decay=0.01)
    schedule = diffusers.DDPMScheduler(beta_schedule='scaled_linear', beta_start=0.00085, beta_end=0.012)
    side, width = unet.config.sample_size, unet.config.cross_attention_dim
    length = networks()['text_encoder']['max_position_embeddings']
    moments = torch.randn(204, 8, side, side, device=device)
    text = torch.randn(2, length, width, device=device)
    row_of_text = torch.arange(2, device=device).repeat_interleave(batch_size)
    network = torch.compile(unet) if compiled else unet
    unet.train()

    def step():
        mean, logvar = moments[torch.randint(0, len(moments), (2 * batch_size,), device=device)].chunk(2, dim=1)
        latents = 0.18215 * (mean + torch.exp(0.5 * logvar) * torch.randn_like(mean))
        noise = torch.randn_like(latents)
        times = torch.randint(0, 1000, (2 * batch_size,), device=device)
        noisy = schedule.add_noise(latents, noise, times)
        with torch.autocast(device, torch.bfloat16):
            prediction = network(noisy, times, text[row_of_text], return_dict=False)[0]
        ours, prior = (prediction.float() - noise).square().chunk(2)
        (ours.mean() + prior.mean()).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def run():
        for _ in range(_STEPS.value):
            step()
        return _STEPS.value

    return repeat(run, torch.cuda.synchronize if device == 'cuda' else lambda: None)


def networks() -> dict:
    """Configurations of the networks that are measured."""
    import stable_diffusion

    return stable_diffusion.networks(_TINY.value)


def measure(framework: str, program: str, batch_size: int) -> list[float] | str:
    """Seconds per step of every repeat, or why there are none."""
    try:
        if framework == 'jax':
            return measure_jax(program, batch_size)
        return measure_torch(program, batch_size, framework == 'torch compiled')
    except Exception as error:
        if 'RESOURCE_EXHAUSTED' in str(error) or type(error).__name__ == 'OutOfMemoryError':
            return 'out of memory'
        raise
    finally:
        gc.collect()


def without_torch() -> str | None:
    """Why torch is not measured, or None if it can be."""
    if importlib.util.find_spec('torch') is None or importlib.util.find_spec('diffusers') is None:
        return 'PyTorch or diffusers is not installed, so only JAX is measured.'
    import torch

    if not (torch.cuda.is_available() or _TINY.value):
        return f'PyTorch {torch.__version__} has no CUDA device, so only JAX is measured.'
    return None


def row_of(row: dict) -> list[str]:
    """A row of the table."""
    named = [row['framework'], row['method'], f'{row["batch_size"]}+{row["batch_size"]}']
    if 'failed' in row:
        return [*named, row['failed'], '-', '-']
    low, middle, high = row['images_per_second']
    return [*named, f'{middle:.2f}', f'{low:.2f} to {high:.2f}', experiment.percent(row['mfu'])]


HEADINGS = ['framework', 'method', 'batch', 'images/s, median', 'lowest to highest', 'MFU']


def main(argv) -> None:
    del argv
    # JAX would take most of the card's memory at once and leave torch none.
    os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')
    import jax

    kind = jax.local_devices()[0].device_kind
    if jax.default_backend() == 'cpu' and not _TINY.value:
        raise ConfigError('JAX found no accelerator, and on CPU a step takes minutes; give --tiny to try the script')
    peak = next((peak for name, peak in PEAKS.items() if name in kind and not _TINY.value), None)
    frameworks, skipped = _FRAMEWORK.value, without_torch()
    if skipped:
        print(skipped)
        frameworks = [name for name in frameworks if name == 'jax']
    rows = []
    for choice in itertools.product(_METHOD.value, _BATCH_SIZE.value, frameworks):
        program, batch_size, framework = choice
        row = {'framework': framework, 'method': program, 'batch_size': batch_size}
        found = measure(framework, program, batch_size)
        if isinstance(found, str):
            rows.append({**row, 'failed': found})
        else:
            low, middle, high = (
                2 * batch_size / seconds for seconds in (max(found), statistics.median(found), min(found))
            )
            mfu = None if peak is None else middle * TFLOP[program] / peak
            row |= {'seconds_per_step': found, 'images_per_second': (low, middle, high), 'mfu': mfu}
            rows.append(row)
        print('  '.join(row_of(rows[-1])), flush=True)
    print(experiment.table(HEADINGS, [row_of(row) for row in rows]))
    if _OUTPUT.value or not _TINY.value:
        versions = {name: importlib.metadata.version(name) for name in PACKAGES if importlib.util.find_spec(name)}
        results = {
            'hardware': experiment.hardware(),
            'device': kind,
            'date': date.today().isoformat(),
            'command': shlex.join(['python', *sys.argv]),
            'versions': versions,
            'tiny': _TINY.value,
            'without_torch': skipped,
            'rows': rows,
        }
        experiment.write_json(Path(_OUTPUT.value or HERE) / 'training.json', results)


if __name__ == '__main__':
    program.run(main)
