"""`data.options`: what is particular to a source, each a frozen dataclass with meanings and bounds."""

from __future__ import annotations

import dataclasses
from typing import TypeVar

from tljax.config import DataConfig
from tljax.config.fields import from_dict
from tljax.config.renamed import renamed_hint
from tljax.errors import UserError, did_you_mean

Options = TypeVar("Options")


@dataclasses.dataclass(frozen=True)
class NoOptions:
    """Of a source that has none."""


def parse_options(config: DataConfig, cls: type[Options]) -> Options:
    """The options of a source as its dataclass. Raises UserError for unknown names and wrong values."""
    known = [field.name for field in dataclasses.fields(cls)]
    for name in config.options:
        if name not in known:
            hint = renamed_hint(f"data.options.{name}") or did_you_mean(name, known)
            raise UserError(f'data.options: {config.name} has no "{name}"{hint}')
    return from_dict(cls, dict(config.options), "data.options.")
