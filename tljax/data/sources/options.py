"""`data.options`: what is particular to a source, each a frozen dataclass with meanings and bounds."""

from __future__ import annotations

import dataclasses
from typing import TypeVar

from tljax.config import DataConfig
from tljax.config.fields import build
from tljax.errors import UserError, nearest

Options = TypeVar("Options")


@dataclasses.dataclass(frozen=True)
class NoOptions:
    """Of a source that has none."""


def read(config: DataConfig, cls: type[Options]) -> Options:
    """The options of a source as its dataclass. Raises UserError for unknown names and wrong values."""
    known = [field.name for field in dataclasses.fields(cls)]
    for name in config.options:
        if name not in known:
            raise UserError(f'data.options: {config.name} has no "{name}"{nearest(name, known)}')
    return build(cls, dict(config.options), "data.options.")
