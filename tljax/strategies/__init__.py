"""Strategies: presets that are phases, and the one function from path to group."""

from tljax.strategies.param_groups import ParamGroup, assign, frozen_modules, leading_frozen_stages
from tljax.strategies.presets import PRESETS, hint_stage
from tljax.strategies.resolve import Strategy, resolve, with_preset_head

__all__ = [
    "PRESETS",
    "ParamGroup",
    "Strategy",
    "assign",
    "frozen_modules",
    "hint_stage",
    "leading_frozen_stages",
    "resolve",
    "with_preset_head",
]
