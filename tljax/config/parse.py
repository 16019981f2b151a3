"""A run's config: from a file or a command line to a frozen, checked `Config`, and back.

`configs/*.py` start from `default()`, an `ml_collections.ConfigDict` made from the dataclasses of
`tljax.config.schema`, so that `--config.optim.lr=0.01` works; `parse` turns it back into a frozen `Config` and checks
it once, before anything is read or written. `python -m tljax.config` prints the table of fields.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import ml_collections

from tljax.config.fields import build, to_config_dict, type_name, walk
from tljax.config.phases import Phase
from tljax.config.schema import Config
from tljax.config.validate import OUTPUT, check
from tljax.errors import UserError, nearest


def default() -> ml_collections.ConfigDict:
    """The schema's defaults as a locked ConfigDict, for `get_config` in configs/*.py."""
    return to_config_dict(Config())


def parse(source: Mapping | ml_collections.ConfigDict) -> Config:
    """Turns a ConfigDict (or nested dict, e.g. from config.json) into a checked `Config`, or raises UserError."""
    if isinstance(source, ml_collections.ConfigDict):
        source = source.to_dict()
    config = build(Config, source, "")
    check(config, field_names())
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
                raise UserError(f'There is no field "{dotted}"{nearest(dotted, field_names())}')
            node, parent = node[part], node
        parent[leaf] = value
    return parse(tree)


def to_dict(config: Any) -> Any:
    """Nested plain dicts, lists and scalars, as config.json holds them; `parse` reads them back."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=list))


def digest(config: Config) -> str:
    """SHA-256 of what decides the result: everything but the place and looks of the output, and what is kept."""
    return hashlib.sha256(json.dumps(decisive(to_dict(config)), sort_keys=True).encode()).hexdigest()


def decisive(tree: Mapping) -> dict:
    """Of a config's tree, what decides the result."""
    kept = {k: v for k, v in tree.items() if k not in OUTPUT}
    return kept | ({"cache": {"views": tree["cache"]["views"]}} if "cache" in tree else {})


def differences(old: Mapping, new: Mapping, prefix: str = "") -> list[str]:
    """The dotted fields in which two config trees differ, as `optim.lr: 0.1 → 0.2`."""
    found = []
    for key in sorted({*old, *new}):
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            found.append(f"{prefix}{key}: {a!r} → {b!r}")
    return found


def field_names(cls: type = Config, prefix: str = "") -> list[str]:
    """Every dotted field of the schema."""
    return [name for name, _, _ in walk(cls, prefix)]


def describe() -> str:
    """The schema as a Markdown table."""
    lines = ["| field | type | default | meaning |", "|---|---|---|---|"]
    for name, field, hint in [*walk(Config), *walk(Phase, "strategy.phases[i].")]:
        default_value = field.default if field.default is not dataclasses.MISSING else {}
        meta = field.metadata
        unit = f" ({meta['unit']})" if meta["unit"] else ""
        choices = f" One of {', '.join(meta['choices'])}." if meta["choices"] else ""
        shown = json.dumps(default_value) if isinstance(default_value, str) else str(default_value)
        hint_name = type_name(hint).replace("|", "\\|")
        lines.append(f"| `{name}` | {hint_name}{unit} | `{shown}` | {meta['doc']}.{choices} |")
    return "\n".join(lines)
