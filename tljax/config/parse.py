"""A run's config: from a file or a command line to a frozen, checked `Config`, and back.

`configs/*.py` start from `default()`, an `ml_collections.ConfigDict` made from the dataclasses of
`tljax.config.schema`, so that `--config.optim.lr=0.01` works; `parse` turns it back into a frozen `Config` and checks
it once, before anything is read or written. `python -m tljax.config` prints the table of fields.
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
    """The schema's defaults as a locked ConfigDict, for `get_config` in configs/*.py."""
    return to_config_dict(Config())


def parse(source: Mapping | ml_collections.ConfigDict) -> Config:
    """Turns a ConfigDict (or nested dict, e.g. from config.json) into a checked `Config`, or raises UserError."""
    if isinstance(source, ml_collections.ConfigDict):
        source = source.to_dict()
    config = from_dict(Config, source, "")
    validate(config, field_names())
    return config


def override(config: Config, settings: Mapping[str, Any]) -> Config:
    """Returns `config` with dotted fields replaced and everything checked again.

    >>> override(Config(), {"optim.lr": 0.1}).optim.lr
    0.1
    """
    tree = to_dict(config)
    for dotted, value in settings.items():
        *parents, leaf = dotted.split(".")
        node = tree
        for part in [*parents, leaf]:
            if not isinstance(node, dict) or part not in node:
                raise UserError(
                    f'There is no field "{dotted}"{renamed_hint(dotted) or did_you_mean(dotted, field_names())}'
                )
            node, parent = node[part], node
        parent[leaf] = value
    return parse(tree)


def to_dict(config: Any) -> Any:
    """Nested plain dicts, lists and scalars, as config.json holds them; `parse` reads them back."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=list))


def field_names(cls: type = Config, prefix: str = "") -> list[str]:
    """Every dotted field of the schema."""
    return [name for name, _, _ in iter_fields(cls, prefix)]


def schema_table() -> str:
    """The schema as a Markdown table."""
    lines = ["| field | type | default | meaning |", "|---|---|---|---|"]
    for name, field, hint in [*iter_fields(Config), *iter_fields(Phase, "strategy.phases[i].")]:
        default_value = field.default if field.default is not dataclasses.MISSING else {}
        meta = field.metadata
        unit = f" ({meta['unit']})" if meta["unit"] else ""
        choices = f" One of {', '.join(meta['choices'])}." if meta["choices"] else ""
        shown = json.dumps(default_value) if isinstance(default_value, str) else str(default_value)
        hint_name = type_name(hint).replace("|", "\\|")
        lines.append(f"| `{name}` | {hint_name}{unit} | `{shown}` | {meta['doc']}.{choices} |")
    return "\n".join(lines)
