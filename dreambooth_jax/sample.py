"""Generates images for prompts with any model: that of a run, the built-in one, a pipeline folder or one of the hub.

  python -m dreambooth_jax.sample --model=runs/dog --prompt="a sks dog in the snow" --output=out

The program writes out/000_00.png ... (number of the prompt, number of the image) and out/grid.png. If the model has two
stages, the base stage's images are in out/base/. The same prompt and seed give the same images, whatever else is
generated. Every file says that a model generated it and, unless told otherwise, from what; it can be signed (C2PA).
"""

import typing
from pathlib import Path

from absl import flags

from dreambooth_jax import program
from dreambooth_jax.config import ConfigError, Metadata, PredictionType, Sampler

_MODEL = program.DEFINE_path(
    'model', None, "A run's folder, a pipeline folder, a .safetensors file, 'storybook', or a hub id."
)
_PROMPT = flags.DEFINE_multi_string('prompt', None, 'What to generate; may be given several times.')
_OUTPUT = program.DEFINE_path('output', None, 'Folder for the images.')
_NUM_IMAGES = flags.DEFINE_integer('num_images', 4, 'Images per prompt.', lower_bound=1)
_SEED = flags.DEFINE_integer('seed', 0, 'Of the noise; image j of every prompt starts from the same.', lower_bound=0)
_NEGATIVE = flags.DEFINE_string('negative_prompt', '', 'What guidance leads away from.')
_BATCH_SIZE = flags.DEFINE_integer('batch_size', 8, 'Images generated at once.', lower_bound=1)
# If these flags are not given, the settings of the run or of the built-in model are used (`samples`); for other models,
# what their makers generate with (families/), or defaults.
_STEPS = flags.DEFINE_integer('steps', None, "Of denoising; else the run's, the model's usual, or 25.", lower_bound=1)
_GUIDANCE = flags.DEFINE_float(
    'guidance_scale', None, "1 is none; else the run's, the model's usual, or 7.5.", lower_bound=1
)
_SAMPLER = flags.DEFINE_enum(
    'sampler', None, typing.get_args(Sampler), "Else the run's, the model's usual, or dpmsolver++."
)
_NOISE_LEVEL = flags.DEFINE_integer(
    'noise_level',
    None,
    "Noise put on the image that super-resolution enlarges, 0 to 999; else the run's "
    'super_resolution.sample_noise_level, or 0.',
    lower_bound=0,
)
_SECOND_STEPS = flags.DEFINE_integer(
    'super_resolution_steps',
    None,
    "Of the second stage; else the run's super_resolution.sample_steps, or --steps.",
    lower_bound=1,
)
_SECOND_GUIDANCE = flags.DEFINE_float(
    'super_resolution_guidance_scale',
    None,
    "Of the second stage; else the run's super_resolution.sample_guidance_scale, or --guidance_scale.",
    lower_bound=1,
)
_SUPER_RESOLUTION = program.DEFINE_path(
    'super_resolution_model', None, "Second stage: as --model, or 'none'; else the model's own."
)
_RESOLUTION = flags.DEFINE_integer(
    'resolution', None, "Side of the base stage's images; else the run's, or the model's own.", lower_bound=1
)
_REVISION = flags.DEFINE_string('model_revision', None, 'Branch, tag or commit of a model of the hub.')
_SECOND_REVISION = flags.DEFINE_string('super_resolution_model_revision', None, 'The same of its second stage.')
_LORA = program.DEFINE_multi_path('lora', [], 'LoRA file that was trained on the model; may be given several times.')
_LORA_SCALE = flags.DEFINE_multi_float('lora_scale', [], 'Strength of each --lora, in their order; else 1.')
_SECOND_LORA = program.DEFINE_multi_path('super_resolution_lora', [], 'The same for the second stage.')
_EMBEDDING = program.DEFINE_multi_path('embedding', [], 'Textual inversion, whose word prompts may hold; repeatable.')
_PREDICTION_TYPE = flags.DEFINE_enum(
    'model_prediction_type', None, typing.get_args(PredictionType), 'What the model predicts; else what it says.'
)
_TOKENIZER_DIR = program.DEFINE_path('model_tokenizer_dir', None, 'Has the tokenizer/ of a model in a single file.')
_TRANSFORMER = program.DEFINE_path(
    'model_transformer_file', None, "A .safetensors file of a transformer alone, in place of the model's own."
)
_METADATA = flags.DEFINE_enum('metadata', None, typing.get_args(Metadata), "Else the run's samples.metadata, or full.")
_CERTIFICATE = program.DEFINE_path('c2pa_certificate', None, 'PEM file that images are signed with, chain behind it.')
_KEY = program.DEFINE_path('c2pa_key', None, 'PEM file with its private key.')
_SIGN = flags.DEFINE_bool('sign', True, "Whether images are signed with the run's certificate, if no other is given.")


def main(argv) -> None:
    del argv
    from dreambooth_jax.data import content_credentials
    from dreambooth_jax.generation import sample_files, signed_files
    from dreambooth_jax.generation.adapters import with_lora
    from dreambooth_jax.generation.cascade import SUPER_RESOLUTION, Cascade
    from dreambooth_jax.generation.new_words import with_embedding
    from dreambooth_jax.generation.origin import Origin
    from dreambooth_jax.generation.run_settings import settings_of
    from dreambooth_jax.system import cpu_devices
    from dreambooth_jax.training import memory

    prompts, output = _PROMPT.value, Path(_OUTPUT.value)
    run = settings_of(_MODEL.value)
    cpu_devices.use(run.cpu_devices)
    given = {
        'steps': _STEPS.value,
        'guidance_scale': _GUIDANCE.value,
        'sampler': _SAMPLER.value,
        'seed': _SEED.value,
        'negative_prompt': _NEGATIVE.value,
        'batch_size': _BATCH_SIZE.value,
        'super_resolution_steps': _SECOND_STEPS.value,
        'super_resolution_guidance_scale': _SECOND_GUIDANCE.value,
        'noise_level': _NOISE_LEVEL.value,
    }
    scales = _LORA_SCALE.value or [1.0] * len(_LORA.value)
    if len(scales) != len(_LORA.value):
        raise ConfigError(f'--lora_scale is given {len(scales)} times, --lora {len(_LORA.value)}; give one for each')
    if (_CERTIFICATE.value is None) != (_KEY.value is None):
        raise ConfigError('--c2pa_certificate and --c2pa_key belong together, but one of them is not given; give both')
    if _KEY.value and not _SIGN.value:
        raise ConfigError('--nosign is given but --c2pa_certificate and --c2pa_key are too; leave it or them out')
    if _KEY.value:
        sign = content_credentials.signer(Path(_CERTIFICATE.value), Path(_KEY.value))
    else:
        sign = signed_files.signer_of(run.samples, 'give --nosign') if _SIGN.value else None
    cascade = Cascade.load(
        _MODEL.value,
        super_resolution_model=_SUPER_RESOLUTION.value,
        prediction_type=_PREDICTION_TYPE.value,
        tokenizer_dir=_TOKENIZER_DIR.value,
        transformer_file=_TRANSFORMER.value,
        revisions=(_REVISION.value, _SECOND_REVISION.value),
        size=run.size if _RESOLUTION.value is None else _RESOLUTION.value,
        clip_skip=run.clip_skip,
    )
    options = run.options(cascade, {name: value for name, value in given.items() if value is not None})
    origin = Origin.of(cascade, options, _METADATA.value or run.samples.metadata)  # before files are merged
    for path, scale in zip(_LORA.value, scales, strict=True):
        cascade = with_lora(cascade, path, scale)
    for path in _SECOND_LORA.value:
        cascade = with_lora(cascade, path, stage=SUPER_RESOLUTION)
    for path in _EMBEDDING.value:
        cascade = with_embedding(cascade, path, [*prompts, _NEGATIVE.value])
    loras = [*zip(_LORA.value, scales, strict=True), *((path, 1.0) for path in _SECOND_LORA.value)]
    origin = origin.with_files(loras, _EMBEDDING.value)
    output.mkdir(parents=True, exist_ok=True)  # before sampling, so that a bad path costs no time
    smaller = [f'--batch_size={options.batch_size // 2}'] if options.batch_size > 1 else []
    with memory.explained('images are generated', smaller, kept=False):
        images = cascade.generate(prompts, options, num_images=_NUM_IMAGES.value)
    sample_files.write(images, prompts, output, origin, sign)
    count, height, width, _ = images.final.shape
    print(f'{count} images of {width} x {height} pixels and grid.png in {output}')


if __name__ == '__main__':
    program.run(main, required=['model', 'prompt', 'output'])
