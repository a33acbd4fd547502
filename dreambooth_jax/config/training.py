"""Settings that DreamBooth (dreambooth.py) and the pretraining of Storybook (pretrain.py) have in common."""

import dataclasses
from typing import Literal

from dreambooth_jax.config.schema import Config, ConfigError, path_setting, setting

# diffusion/sampler_list.py has what they do; a test holds the two together.
Sampler = Literal['ddpm', 'ddim', 'dpmsolver++', 'euler', 'euler_ancestral', 'heun', 'unipc']
Metadata = Literal['full', 'mark']  # those of data/provenance.py; a test holds the two together
# diffusion/rectified_flow.py has what they do.
TimeWeighting = Literal['sigma_sqrt', 'cosmap']
TimeDistribution = Literal['uniform', 'logit_normal', 'mode']
# The settings that only one distribution of times has.
_TIME_PARAMETERS = {'logit_normal': ('time_mean', 'time_std'), 'mode': ('time_mode_scale',)}
LearningRateSchedule = Literal['constant', 'warmup', 'cosine']
# With prodigy, learning_rate is a multiplier. A value below this one was surely meant for another kind of optimizer.
LOWEST_MULTIPLIER = 0.01


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Config):
    """The optimizer. Both stages share these settings, but each stage has its own learning rate."""

    # 'adamw': computed as torch.optim.AdamW does.
    # 'adafactor': no first moments, and the second moments are kept as sums over rows and columns, so the optimizer
    # state needs almost no memory. The learning rate is not scaled by the size of a weight: use the values of adamw.
    # 'lion': uses only the sign of the update, so all weights move by the same amount. Use a learning rate 3 to 10
    # times lower than for adamw, and a weight decay higher by the same factor.
    # 'prodigy': finds the learning rate itself; learning_rate is multiplied with it and is best left at 1.0.
    kind: Literal['adamw', 'adafactor', 'lion', 'prodigy'] = 'adamw'
    # Dtype in which adamw stores its two moments, together 8, 4 or 2 bytes per weight; each step computes in float32.
    # 'int8' stores a scale for every row of an array; arrays of fewer than 4096 weights stay float32.
    state_dtype: Literal['float32', 'bfloat16', 'int8'] = setting('float32', formerly='moments')
    # Decay of the first and of the second moment. None: (0.9, 0.999), or (0.9, 0.99) for lion. adafactor has no betas.
    betas: tuple[float, float] | None = setting(None, 'in [0, 1)')
    # Decoupled weight decay; each step it is multiplied by the learning rate.
    weight_decay: float = setting(0.01, '>= 0')
    # Added to the square root of the second moment. None: 1e-8. adafactor and lion have no epsilon.
    epsilon: float | None = setting(None, '> 0')
    # Largest global norm of the gradient; a larger gradient is scaled down to it. None: no clipping.
    grad_clip_norm: float | None = setting(1.0, '> 0')
    # Decay per step of an exponential moving average of the weights. Samples and exports then use the average. None: no
    # average. As in diffusers the decay rises slowly: step t (from 0) uses min(ema_decay, (1 + t) / (10 + t)), which
    # reaches 0.99 at step 890.
    ema_decay: float | None = setting(None, 'in (0, 1)')
    # Learning rate over the steps. 'constant'; 'warmup': rises linearly from 0, then stays constant; 'cosine': rises
    # linearly, then falls along a cosine to 0 at the stage's last step.
    schedule: LearningRateSchedule = 'constant'
    # Length of the linear rise of 'warmup' and 'cosine', in steps.
    warmup_steps: int = setting(0, '>= 0')

    def check(self, path: str) -> None:
        super().check(path)
        if self.state_dtype != 'float32' and self.kind != 'adamw':
            raise ConfigError(
                f"{path}.state_dtype is {self.state_dtype!r} but only kind 'adamw' has moments to compress; "
                f"{path}.kind is {self.kind!r}, so leave state_dtype at 'float32'"
            )
        for name, without in (('betas', ('adafactor',)), ('epsilon', ('adafactor', 'lion'))):
            if getattr(self, name) is not None and self.kind in without:
                raise ConfigError(
                    f'{path}.{name} is {getattr(self, name)} but {path}.kind {self.kind!r} has none; leave it None'
                )
        if self.schedule == 'constant' and self.warmup_steps:
            raise ConfigError(
                f"{path}.warmup_steps is {self.warmup_steps} but {path}.schedule is 'constant', which has no warm-up; "
                f"set the schedule to 'warmup' or 'cosine'"
            )

    def check_learning_rate(self, learning_rate: float, path: str) -> None:
        """Checks a learning rate against the kind of optimizer.

        Args:
          learning_rate: the value of a setting.
          path: dotted name of that setting, for the error.

        Raises:
          ConfigError: if the kind is 'prodigy' and the value is too low to be a multiplier.
        """
        if self.kind == 'prodigy' and learning_rate < LOWEST_MULTIPLIER:
            raise ConfigError(
                f"{path} is {learning_rate} but the optimizer's kind is 'prodigy', which finds the learning rate and "
                f'multiplies it by this; set it to 1.0 (at least {LOWEST_MULTIPLIER})'
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObjectiveConfig(Config):
    """The loss of an example; the same in both stages."""

    # Min-SNR weighting (Hang et al. 2023): the upper limit of the signal-to-noise ratio in a timestep's weight, usually
    # 5. None: all timesteps have the same weight.
    min_snr_gamma: float | None = setting(None, '> 0')
    # Weight of each time of a rectified flow, with s the share of noise, as in diffusers' scripts: 'sigma_sqrt': s^-2;
    # 'cosmap': 2 / (pi (1 - 2 s + 2 s^2)). None: all alike. Other models have none.
    time_weighting: TimeWeighting | None = None
    # Strength of additional noise that is constant over each channel; about 0.1 if very dark images are wanted.
    offset_noise: float = setting(0.0, '>= 0')
    # Train the learned variance of models that have one. False freezes the half of the denoiser's last layer that
    # predicts it.
    train_variance: bool = True
    # Weight of the variational bound that trains the variance. The loss already contains the factor lambda = 0.001 of
    # Nichol & Dhariwal: 1 gives their hybrid loss.
    variance_weight: float = setting(1.0, '>= 0')
    # Share of examples whose prompt is replaced by the empty prompt, which trains classifier-free guidance. Fine-tuning
    # on a few images does not need it.
    prompt_dropout: float = setting(0.0, 'in [0, 1]')
    # Change the noise schedule so that the last timestep holds nothing of the image (Lin et al. 2023), which lets a
    # model make very dark and very bright images. The trained stages then train and generate with the changed schedule
    # and with timesteps that start at the last one ('trailing'), and the exported model says so. Not possible with
    # models that predict epsilon.
    zero_terminal_snr: bool = False
    # How often each timestep is trained on, as in Esser et al. 2024, section 3.1. 'uniform': all alike. 'logit_normal':
    # the middle more often than the ends. 'mode': also the middle, but the ends stay likely.
    time_distribution: TimeDistribution = 'uniform'
    # Only for 'logit_normal': mean and standard deviation of the logit of timestep / number of timesteps. A mean above
    # 0 trains more on high noise (in diffusers' scripts it is the other way round).
    time_mean: float = 0.0
    time_std: float = setting(1.0, '> 0')
    # Only for 'mode': above 0 the middle is more likely, below 0 the ends.
    time_mode_scale: float = setting(1.29, 'in [-1, 1.75]')
    # Shift of the distribution (Esser et al. 2024, equation 23): the share u of noise becomes k u / (1 + (k - 1) u), so
    # that a number above 1 trains more on high noise. None: that of a rectified flow whose scheduler file has a static
    # one, otherwise none.
    time_shift: float | None = setting(None, '> 0')
    # Take the shift from the size of the images, those of a bucket from the bucket's own: only for rectified flows. It
    # is the rule of FLUX.1: the logarithm of k rises linearly with the number of tokens, from 0.5 at 256 to 1.15 at
    # 4096 unless the scheduler file says otherwise.
    dynamic_time_shift: bool = False
    # Lowest and highest timestep that is trained on, as shares of all timesteps: 0 is a clean image and 1 is noise. The
    # distribution is squeezed into this range.
    time_range: tuple[float, float] = setting((0.0, 1.0), 'in [0, 1]')

    def check(self, path: str) -> None:
        super().check(path)
        if not self.time_range[0] < self.time_range[1]:
            raise ConfigError(f'{path}.time_range must be (low, high) with low < high, got {self.time_range}')
        if self.time_weighting is not None and self.min_snr_gamma is not None:
            raise ConfigError(
                f'{path}.time_weighting is {self.time_weighting!r} and {path}.min_snr_gamma is {self.min_snr_gamma}, '
                f'but an example has one weight; leave one of them None'
            )
        if self.time_shift is not None and self.dynamic_time_shift:
            raise ConfigError(
                f'{path}.time_shift is {self.time_shift} and {path}.dynamic_time_shift is True, but times have one '
                f'shift; leave the first None or the second False'
            )
        for kind, names in _TIME_PARAMETERS.items():
            for name in names:
                default = ObjectiveConfig.__dataclass_fields__[name].default
                if self.time_distribution != kind and getattr(self, name) != default:
                    raise ConfigError(
                        f'{path}.{name} is {getattr(self, name)} but {path}.time_distribution is '
                        f'{self.time_distribution!r}, which has none; set that to {kind!r}, or leave {name} at '
                        f'{default}'
                    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParallelConfig(Config):
    """How the work is spread over devices, and the dtype in which they compute."""

    # 'pmap': every device holds all parameters and computes its share of the examples.
    # 'fsdp': the parameters are sharded over the devices as well.
    mode: Literal['pmap', 'fsdp'] = 'pmap'
    # Dtype in which the networks compute. Master weights, norms and loss stay float32. 'auto': bfloat16, but float32 on
    # CPUs and on NVIDIA cards before the A100, such as the T4.
    dtype: Literal['auto', 'float32', 'bfloat16'] = 'auto'
    # 'fsdp' shards every parameter of at least this many bytes and copies smaller ones to all devices.
    fsdp_min_bytes: int = setting(4 * 2**20, '>= 0')
    # Rematerialisation: compute the denoiser's activations again in the backward pass instead of keeping them. It needs
    # less memory and a third more time.
    remat: bool = False
    # Optimizer steps per device call (a lax.scan), which saves host time. None: 10, but 1 on CPU, where convolutions
    # inside a loop are slow.
    steps_per_dispatch: int | None = setting(None, '> 0')
    # As how many devices a CPU generates images; it trains as one. Two make small models faster on two cores
    # (experiments/speed), and each holds all weights. None: what JAX makes of a CPU, which is one.
    cpu_devices: int | None = setting(None, '> 0')


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig(Config):
    """Checkpoints, from which an interrupted run resumes."""

    # Steps between checkpoints. The last step always writes one. 0: only the last step does.
    every: int = setting(500, '>= 0')
    # How many checkpoints are kept, the newest ones; older ones are deleted.
    keep: int = setting(2, '> 0')


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplesConfig(Config):
    """Images that are generated during training, to watch its progress."""

    # Steps between samples. The last step always generates some. 0: only the last step does.
    every: int = setting(0, '>= 0')
    # The prompts to sample. Empty: every instance and class prompt (in pretraining: no samples).
    prompts: tuple[str, ...] = ()
    # Images per prompt.
    num_images: int = setting(2, '> 0')
    # Images generated at once, on all devices together. None: 8, or one per device with a latent model, whose decoder
    # needs much memory per image. The images do not depend on it.
    batch_size: int | None = setting(None, '> 0')
    # Denoising steps per image.
    steps: int = setting(25, '> 0')
    # Classifier-free guidance scale; 1 means no guidance. FLUX.1 dev is told it as a number, without a second pass.
    guidance_scale: float = setting(7.5, '>= 1')
    # 'ddpm' is the ancestral sampler; the others need fewer steps. 'heun' calls the network twice per step.
    sampler: Sampler = 'dpmsolver++'
    # Seed of the samples alone: they start from the same noise at every step, so that steps can be compared.
    seed: int = setting(0, '>= 0')
    # What the files of all images that a run generates say of themselves, class images and those of evaluate included.
    # 'full': that a model generated them, and prompt, model, sampler and seed. 'mark': that a model generated them.
    metadata: Metadata = 'full'
    # Sign these images, class images excepted, as C2PA says (Content Credentials; pip install
    # 'dreambooth-jax[provenance]'): a PEM file with a certificate for signing and, behind it, those that lead up to its
    # root. It is tried before a training begins. None: they are not signed.
    c2pa_certificate: str | None = path_setting(None)
    # PEM file with the private key of the certificate, not encrypted. Only its path is kept, never the key.
    c2pa_key: str | None = path_setting(None)

    def check(self, path: str) -> None:
        super().check(path)
        names = ('c2pa_certificate', 'c2pa_key')
        missing, given = sorted(names, key=lambda name: getattr(self, name) is not None)
        if getattr(self, missing) is None and getattr(self, given) is not None:
            raise ConfigError(
                f'{path}.{given} is {getattr(self, given)!r} but {path}.{missing} is None; give both, or set both to '
                f'None'
            )
