"""Strategies: presets that return phases, and the rules that make parameters trainable or frozen."""

from tljax.strategies.param_groups import (
    Masks,
    ParamGroup,
    assign_param_groups,
    frozen_modules,
    frozen_stages,
    masks,
    masks_of_groups,
)
from tljax.strategies.presets import PRESETS, hint_stage
from tljax.strategies.resolve import Strategy, build_phases, with_preset_head

__all__ = [
    "PRESETS",
    "Masks",
    "ParamGroup",
    "Strategy",
    "assign_param_groups",
    "build_phases",
    "frozen_modules",
    "frozen_stages",
    "hint_stage",
    "masks",
    "masks_of_groups",
    "with_preset_head",
]
