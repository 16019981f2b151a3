"""Strategies: presets that are phases, and the one function from path to group."""

from tljax.strategies.groups import Group, assign, frozen_modules, frozen_prefix
from tljax.strategies.presets import PRESETS, Strategy, resolve

__all__ = ["PRESETS", "Group", "Strategy", "assign", "frozen_modules", "frozen_prefix", "resolve"]
