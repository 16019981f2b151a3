"""The config of a run: its fields, and conversion of a file or command line to a checked `Config`.

`python -m tljax.config` prints every field.
"""

from tljax.config.parse import (
    default,
    field_names,
    override,
    parse,
    schema_table,
    to_dict,
)
from tljax.config.phases import NeuronsConfig, Phase, StrategyConfig
from tljax.config.schema import (
    AugmentConfig,
    CacheConfig,
    Config,
    DataConfig,
    FeaturesConfig,
    ModelConfig,
    OptimConfig,
    ReportConfig,
    TrainConfig,
)

__all__ = [
    "AugmentConfig",
    "CacheConfig",
    "Config",
    "DataConfig",
    "FeaturesConfig",
    "ModelConfig",
    "NeuronsConfig",
    "OptimConfig",
    "Phase",
    "ReportConfig",
    "StrategyConfig",
    "TrainConfig",
    "default",
    "field_names",
    "override",
    "parse",
    "schema_table",
    "to_dict",
]
