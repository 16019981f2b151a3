"""Options of a data source (`data.options`), a frozen dataclass in the file of each source."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, TypeVar

from tljax.config import DataConfig
from tljax.config.fields import from_dict
from tljax.config.renamed import renamed_hint
from tljax.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Options = TypeVar("Options", bound="DataclassInstance")


@dataclasses.dataclass(frozen=True)
class NoOptions:
    """Options of a source that has none."""


def parse_options(config: DataConfig, cls: type[Options]) -> Options:
    """Convert `data.options` to the dataclass of a source.

    Args:
      config: the data section of the config.
      cls: dataclass of the options.

    Raises:
      UserError: a name is unknown, or a value is invalid.
    """
    valid_names = [field.name for field in dataclasses.fields(cls)]
    for name in config.options:
        if name not in valid_names:
            hint = renamed_hint(f"data.options.{name}") or did_you_mean(name, valid_names)
            raise UserError(f'data.options: {config.name} has no "{name}"{hint}')
    return from_dict(cls, dict(config.options), "data.options.")
