"""Every setting of this project: frozen dataclasses, and the ConfigDict of them that config files change.

schema.py       the machinery: dataclasses -> locked ConfigDict -> checked dataclasses, and all error texts
dreambooth.py   the settings of train and of the programs that share its config files
data.py         the settings of the subjects and of their images
lora.py         the settings of LoRA
pretrain.py     the settings of pretrain
evaluation.py   the settings of the evaluation during training
training.py     the settings that train and pretrain have in common
presets.py      recipes for published base models
"""

from dreambooth_jax.config.built_in import (
    BUILT_IN,
    BUILT_IN_NAMES,
    STORYBOOK,
    STORYBOOK_CPU_DEVICES,
    STORYBOOK_ENLARGING,
    STORYBOOK_FLOW,
    STORYBOOK_FLOW_SAMPLING,
    STORYBOOK_SAMPLING,
)
from dreambooth_jax.config.data import DataConfig, SubjectConfig
from dreambooth_jax.config.dreambooth import (
    LAST_TIMESTEP,
    NO_MODEL,
    BaseConfig,
    DreamBoothConfig,
    ExportFormat,
    PredictionType,
    PriorConfig,
    RunSamplesConfig,
    SuperResolutionConfig,
    TextualInversionConfig,
    Timestep,
    check_noise_level,
)
from dreambooth_jax.config.evaluation import EvaluationConfig
from dreambooth_jax.config.lora import LoraConfig
from dreambooth_jax.config.pretrain import PretrainConfig
from dreambooth_jax.config.schema import (
    Config,
    ConfigError,
    UnknownSettingError,
    path_setting,
    resolve,
    setting,
    to_config_dict,
    to_dict,
    with_new_names,
)
from dreambooth_jax.config.training import (
    CheckpointConfig,
    Metadata,
    ObjectiveConfig,
    OptimizerConfig,
    ParallelConfig,
    Sampler,
    SamplesConfig,
)

__all__ = [
    'BUILT_IN',
    'BUILT_IN_NAMES',
    'BaseConfig',
    'CheckpointConfig',
    'Config',
    'ConfigError',
    'DataConfig',
    'DreamBoothConfig',
    'EvaluationConfig',
    'ExportFormat',
    'LAST_TIMESTEP',
    'LoraConfig',
    'Metadata',
    'NO_MODEL',
    'ObjectiveConfig',
    'OptimizerConfig',
    'ParallelConfig',
    'PredictionType',
    'PretrainConfig',
    'PriorConfig',
    'RunSamplesConfig',
    'STORYBOOK',
    'STORYBOOK_CPU_DEVICES',
    'STORYBOOK_ENLARGING',
    'STORYBOOK_FLOW',
    'STORYBOOK_FLOW_SAMPLING',
    'STORYBOOK_SAMPLING',
    'Sampler',
    'SamplesConfig',
    'SubjectConfig',
    'SuperResolutionConfig',
    'TextualInversionConfig',
    'Timestep',
    'UnknownSettingError',
    'check_noise_level',
    'path_setting',
    'resolve',
    'setting',
    'to_config_dict',
    'to_dict',
    'with_new_names',
]
