"""The configuration of a run: its sections, and how it is read."""

from distbranch.config.network import AdaShareConfig, MethodConfig, ModelConfig
from distbranch.config.reading import describe_keys, differences, load_config, to_yaml
from distbranch.config.sections import Config, DataConfig, LaunchConfig, OptimConfig, TrainConfig

__all__ = [
    "AdaShareConfig",
    "Config",
    "DataConfig",
    "LaunchConfig",
    "MethodConfig",
    "ModelConfig",
    "OptimConfig",
    "TrainConfig",
    "describe_keys",
    "differences",
    "load_config",
    "to_yaml",
]
