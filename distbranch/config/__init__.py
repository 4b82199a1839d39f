"""The configuration of a run: its sections, and how it is read."""

from distbranch.config.reading import describe_keys, differences, load_config, to_yaml
from distbranch.config.sections import Config, DataConfig, LaunchConfig, MethodConfig, OptimConfig

__all__ = [
    "Config",
    "DataConfig",
    "LaunchConfig",
    "MethodConfig",
    "OptimConfig",
    "describe_keys",
    "differences",
    "load_config",
    "to_yaml",
]
