"""The configuration of a run: its sections, and how it is read."""

from distbranch.config.data import DataConfig
from distbranch.config.network import AdaShareConfig, MethodConfig, ModelConfig
from distbranch.config.reading import describe_keys, differences, load_config, to_yaml
from distbranch.config.sections import Config, LaunchConfig
from distbranch.config.training import OptimConfig, TrainConfig

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
