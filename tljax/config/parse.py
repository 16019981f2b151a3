"""Conversion of a config file or command line to a frozen, checked `Config`, and back.

`configs/*.py` start from `default()`, an `ml_collections.ConfigDict` made from the dataclasses of
`tljax.config.schema`, so that `--config.optim.lr=0.01` works. `parse` converts it to a frozen `Config` and checks it
once, before anything is read or written. `python -m tljax.config` prints the table of fields.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import ml_collections

from tljax.config.fields import from_dict, iter_fields, to_config_dict, type_name
from tljax.config.phases import Phase
from tljax.config.renamed import renamed_hint
from tljax.config.schema import Config
from tljax.config.validate import validate
from tljax.errors import UserError, did_you_mean


def default() -> ml_collections.ConfigDict:
    """Return the default config as a locked ConfigDict, for `get_config` in configs/*.py."""
    return to_config_dict(Config())


def parse(source: Mapping | ml_collections.ConfigDict) -> Config:
    """Return the checked `Config` of a ConfigDict or nested dict, such as the content of config.json.

    Raises:
      UserError: a field is unknown, has a wrong type or value, or contradicts another field.
    """
    if isinstance(source, ml_collections.ConfigDict):
        source = source.to_dict()
    config = from_dict(Config, source, "")
    validate(config, field_names())
    return config


def override(config: Config, settings: Mapping[str, Any]) -> Config:
    """Return the config with dotted fields replaced, checked again.

    >>> override(Config(), {"optim.lr": 0.1}).optim.lr
    0.1
    """
    tree = to_dict(config)
    for dotted, value in settings.items():
        *parents, last = dotted.split(".")
        node = tree
        for part in [*parents, last]:
            if not isinstance(node, dict) or part not in node:
                raise UserError(
                    f'There is no field "{dotted}"{renamed_hint(dotted) or did_you_mean(dotted, field_names())}'
                )
            parent = node
            node = node[part]
        parent[last] = value
    return parse(tree)


def to_dict(config: Any) -> Any:
    """Return a config as nested dicts, lists and scalars, as written to config.json; `parse` reverses it."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=list))


def field_names(cls: type = Config, prefix: str = "") -> list[str]:
    """Return the dotted names of all fields."""
    return [name for name, _, _ in iter_fields(cls, prefix)]


def schema_table() -> str:
    """Return the fields as a Markdown table."""
    lines = ["| field | type | default | description |", "|---|---|---|---|"]
    for name, field, hint in [*iter_fields(Config), *iter_fields(Phase, "strategy.phases[i].")]:
        default_value = field.default if field.default is not dataclasses.MISSING else {}
        meta = field.metadata
        unit = f" ({meta['unit']})" if meta["unit"] else ""
        choices = f" One of {', '.join(meta['choices'])}." if meta["choices"] else ""
        shown = json.dumps(default_value) if isinstance(default_value, str) else str(default_value)
        hint_name = type_name(hint).replace("|", "\\|")
        lines.append(f"| `{name}` | {hint_name}{unit} | `{shown}` | {meta['doc']}.{choices} |")
    return "\n".join(lines)
