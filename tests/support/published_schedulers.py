"""Scheduler files of published models. They lack some keys that were added to diffusers later."""

_STABLE_DIFFUSION = {
    'beta_end': 0.012,
    'beta_schedule': 'scaled_linear',
    'beta_start': 0.00085,
    'clip_sample': False,
    'num_train_timesteps': 1000,
    'set_alpha_to_one': False,
    'skip_prk_steps': True,
    'steps_offset': 1,
    'trained_betas': None,
}
_DEEPFLOYD_IF = {
    '_class_name': 'DDPMScheduler',
    'beta_end': 0.02,
    'beta_schedule': 'squaredcos_cap_v2',
    'beta_start': 0.0001,
    'clip_sample': True,
    'clip_sample_range': 1.0,
    'dynamic_thresholding_ratio': 0.95,
    'lambda_min_clipped': -5.1,
    'num_train_timesteps': 1000,
    'prediction_type': 'epsilon',
    'sample_max_value': 1.5,
    'thresholding': True,
    'trained_betas': None,
    'variance_type': 'learned_range',
}
SD_1_5 = {**_STABLE_DIFFUSION, '_class_name': 'PNDMScheduler', '_diffusers_version': '0.6.0'}
SD_2_1 = {**_STABLE_DIFFUSION, '_class_name': 'DDIMScheduler', 'prediction_type': 'v_prediction'}
SDXL = {
    **_STABLE_DIFFUSION,
    '_class_name': 'EulerDiscreteScheduler',
    'interpolation_type': 'linear',
    'prediction_type': 'epsilon',
    'sample_max_value': 1.0,
    'timestep_spacing': 'leading',
    'use_karras_sigmas': False,
}
IF_I = _DEEPFLOYD_IF
PUBLISHED = {
    'stable-diffusion-v1-5': SD_1_5,
    'stable-diffusion-2-1': SD_2_1,
    'stable-diffusion-2-1-base': {**SD_1_5, 'prediction_type': 'epsilon'},
    'stable-diffusion-xl-base-1.0': SDXL,
    'stable-diffusion-x4-upscaler': {**SD_2_1, 'beta_start': 0.0001, 'beta_end': 0.02},
    'deepfloyd-if-i': IF_I,
    'deepfloyd-if-ii': {**_DEEPFLOYD_IF, 'sample_max_value': 1.0},
}
