"""Strategies: presets that are phases, and the one function from path to group."""

from tljax.strategies.param_groups import ParamGroup, assign_param_groups, frozen_modules, frozen_stages
from tljax.strategies.presets import PRESETS, hint_stage
from tljax.strategies.resolve import Strategy, build_phases, with_preset_head

__all__ = [
    "PRESETS",
    "ParamGroup",
    "Strategy",
    "assign_param_groups",
    "build_phases",
    "frozen_modules",
    "frozen_stages",
    "hint_stage",
    "with_preset_head",
]
