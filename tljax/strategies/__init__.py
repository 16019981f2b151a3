"""Strategies: presets that are phases, and the one function from path to group."""

from tljax.strategies.param_groups import Group, assign, frozen_modules, frozen_prefix
from tljax.strategies.presets import PRESETS, hint_stage
from tljax.strategies.resolve import Strategy, resolve, with_preset_head

__all__ = [
    "PRESETS",
    "Group",
    "Strategy",
    "assign",
    "frozen_modules",
    "frozen_prefix",
    "hint_stage",
    "resolve",
    "with_preset_head",
]
