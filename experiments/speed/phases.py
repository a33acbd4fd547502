"""What each device holds in every phase of a run of Stable Diffusion 1.5, by shapes alone; nothing is run.

  python experiments/speed/phases.py --config=configs/dog.py:stable-diffusion-v1-5       # weights, moments and data
  ... --topology=v5e:2x4 --devices=1                         # and temporaries, for chips that are not here
  ... --tiny                                                 # does the script work?

It is a run of the base stage on four photos. The networks have the published sizes and no values, and the tokenizer
gives zeros, so that nothing is downloaded. The rows are those of `train --dry_run`, whose code counts them.
"""

import dataclasses

from absl import flags

from dreambooth_jax import program
from dreambooth_jax.config import DreamBoothConfig, resolve

_CONFIG = program.DEFINE_config('config', 'Settings file for Stable Diffusion 1.5.')
_TOPOLOGY = flags.DEFINE_string('topology', None, 'TPU to compile for ahead of time; None: nothing is compiled.')
_DEVICES = flags.DEFINE_integer('devices', 1, 'How many of its devices, or of those at hand.', lower_bound=1)
_TINY = flags.DEFINE_bool('tiny', False, 'Networks of a few thousand weights, to try the script out.')


def make_cascade(dtype):
    """The base stage, whose text encoder reads prompts of zeros."""
    import numpy as np
    import stable_diffusion

    from dreambooth_jax.families.prompts import ClipPrompts
    from dreambooth_jax.generation.cascade import Cascade

    networks = stable_diffusion.TINY if _TINY.value else stable_diffusion.PUBLISHED
    vae = {**stable_diffusion.VAE, **({'block_out_channels': [32] * 4} if _TINY.value else {})}
    pipeline = stable_diffusion.make_pipeline({**networks, 'vae': vae}, dtype)
    length = networks['text_encoder']['max_position_embeddings']

    class WithoutTokenizer(Cascade):
        def prompt_encoder(self, stage='base'):
            zeros = lambda prompts: (np.zeros((len(prompts), length), np.int32),) * 2  # noqa: E731
            apply = pipeline.components['text_encoder'].apply
            return ClipPrompts({'text_encoder': apply}, {'text_encoder': zeros})

    return WithoutTokenizer(pipeline)


def main(argv) -> None:
    del argv
    import jax
    import numpy as np

    from dreambooth_jax.data.table import Examples
    from dreambooth_jax.finetune import memory_plan, plan, planned_stage, target
    from dreambooth_jax.training.placement import make_placement

    settings = _CONFIG.value.to_dict()
    settings['parallel']['dtype'] = 'bfloat16'
    settings['data']['instance_dir'] = 'photos'  # it is not looked into
    config = resolve(DreamBoothConfig, settings)
    with target.planned_for(_TOPOLOGY.value) as where:
        devices = (where.devices or jax.devices())[: _DEVICES.value]
        where = dataclasses.replace(where, devices=devices, name=f'{len(devices)} of {where.name}')
        cascade = make_cascade('bfloat16')
        side = cascade.base_size
        images = np.broadcast_to(np.uint8(0), (4, side, side, 3))
        instance = [Examples(images, ['a sks dog'] * 4)]
        placement = make_placement(config.parallel.mode, devices=devices)
        stages = {'base': planned_stage.plan_stage(config, 'base', cascade, instance, placement)}
        uses = memory_plan.uses(config, cascade, stages, placement, where)
        print(f'for {where.name}:')
        print('\n'.join(plan.memory_lines(uses, where, memory_plan.host_bytes(cascade, stages))))


if __name__ == '__main__':
    program.run(main, required=['config'])
