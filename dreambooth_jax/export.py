"""Writes what a run has trained in a format that other programs read.

  python -m dreambooth_jax.export --workdir=runs/dog --output=exported
  python -m dreambooth_jax.export --workdir=runs/dog --format=single_file --output=dog.safetensors

The program takes the newest checkpoint of each stage or, of a run that was evaluated, the best one of its base stage
(the averaged weights, if the run averages), and everything else from the model that the run began with. It writes the
result, reads it back and compares. If the run has no checkpoints, its model/ is exported.

  diffusers     a pipeline folder with both stages, which PyTorch's diffusers opens too; adapters are merged
  single_file   the original layout of Stable Diffusion, for AUTOMATIC1111, ComfyUI and diffusers; adapters are merged.
                Of FLUX.1, FLUX.2 Klein, Z-Image and Stable Diffusion 3, the transformer alone in its makers' layout,
                for ComfyUI's node "Load Diffusion Model" and diffusers
  lora_peft     the adapters of a run that trained LoRA, for diffusers and PEFT; DoRA and DeepFloyd IF too
  lora_kohya    the same for ComfyUI, AUTOMATIC1111, Forge and kohya, which do not read all of lora_peft, and OneTrainer
  lora_comfyui  the adapters of a transformer, such as FLUX.2 Klein's, under the names that ComfyUI's own nodes write

With --push_to=OWNER/NAME, what was written is uploaded to the Hugging Face hub, with its model card and some of the
run's samples, into a private repository unless --nopush_private says otherwise. The token is the one of `hf auth login`
or HF_TOKEN. Photos and class images are not uploaded.

In the last four formats, the new word of textual inversion is written beside the output in a file of its own, such as
sks-dog.safetensors for <sks-dog>. ComfyUI (embedding:sks-dog) and AUTOMATIC1111 (sks-dog) call the word by that name.
"""

import typing
from pathlib import Path

from absl import flags

from dreambooth_jax import program
from dreambooth_jax.config import ConfigError, ExportFormat

FORMATS = typing.get_args(ExportFormat)

_WORKDIR = program.DEFINE_path('workdir', None, "The run's folder.")
_FORMAT = flags.DEFINE_enum('format', FORMATS[0], FORMATS, 'What to write.')
_OUTPUT = program.DEFINE_path(
    'output', None, 'Pipeline folder, or NAME.safetensors for the other formats; what is there is replaced.'
)
_STEP = flags.DEFINE_integer(
    'step', None, 'Checkpoint to take; a stage that has none of that step gives what it would without.', lower_bound=0
)
_DTYPE = flags.DEFINE_enum('dtype', 'float32', ['float32', 'float16', 'bfloat16'], 'Of the stored weights.')
_PUSH_TO = flags.DEFINE_string(
    'push_to', None, 'OWNER/NAME: a repository of the Hugging Face hub that what is written is uploaded to.'
)
_PUSH_PRIVATE = flags.DEFINE_boolean('push_private', True, 'Whether only its owner sees a new repository.')


def main(argv) -> None:
    del argv
    from dreambooth_jax.finetune import formats, sharing
    from dreambooth_jax.finetune.trained import read_config, read_trained

    workdir, form, output = Path(_WORKDIR.value), _FORMAT.value, Path(_OUTPUT.value)
    name, private = _PUSH_TO.value, _PUSH_PRIVATE.value
    if name is not None:
        sharing.check(read_config(workdir), name, private)
    elif _PUSH_PRIVATE.present:
        raise ConfigError('--push_private says how a repository is made, so it needs --push_to=OWNER/NAME')
    trained = read_trained(workdir, _STEP.value)
    written = formats.write(trained, form, output, dtype=_DTYPE.value)
    print('\n'.join([*trained.origins, *written.values()]))
    if name is not None:
        export = formats.export_of(trained, form, output)
        print(sharing.push(export, list(written), name, steps=trained.steps, private=private))


if __name__ == '__main__':
    program.run(main, required=['workdir', 'output'])
