"""What a schema of frozen dataclasses needs: fields with meanings and bounds, conversion, and one-sentence errors.

Nothing here knows a field of tljax; `tljax.config` is the schema.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping

import ml_collections
from ml_collections import config_dict

from tljax.config.renamed import renamed_hint
from tljax.errors import UserError, did_you_mean


def field(default, doc, *, unit=None, choices=None, ge=None, gt=None, le=None, lt=None):
    """A field with its meaning, unit and bounds."""
    meta = {"doc": doc, "unit": unit, "choices": choices, "ge": ge, "gt": gt, "le": le, "lt": lt}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=lambda: dict(default), metadata=meta)
    return dataclasses.field(default=default, metadata=meta)


def iter_fields(cls, prefix=""):
    """Yields (dotted name, field, type) for every leaf field, nested dataclasses included."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            yield from iter_fields(hint, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", field, hint


def to_config_dict(value) -> ml_collections.ConfigDict:
    """A locked ConfigDict with the values of a dataclass; None becomes a typed placeholder."""
    # convert_dict=False keeps plain dicts plain: a sweep's keys hold dots, which a ConfigDict refuses.
    out = ml_collections.ConfigDict(convert_dict=False)
    hints = typing.get_type_hints(type(value))
    for field in dataclasses.fields(value):
        item = getattr(value, field.name)
        if dataclasses.is_dataclass(item):
            item = to_config_dict(item)
        elif item is None:
            item = config_dict.placeholder(_optional(hints[field.name]))
        out[field.name] = item
    return out.lock()


def _optional(hint):
    """The type inside `T | None`, or None when `hint` has no None in it."""
    args = typing.get_args(hint)
    return next(a for a in args if a is not types.NoneType) if types.NoneType in args else None


def type_name(hint) -> str:
    """The type as a reader would write it."""
    return getattr(hint, "__name__", str(hint)) if not typing.get_args(hint) else str(hint)


def from_dict(cls, tree, prefix):
    """Makes dataclass `cls` from a nested dict; every key, type and bound is checked. Raises UserError."""
    if isinstance(tree, cls):
        tree = dataclasses.asdict(tree)
    if not isinstance(tree, Mapping):
        raise UserError(f"{prefix.rstrip('.') or 'The config'} must be a set of fields, got {tree!r}.")
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for key in tree:
        if key not in fields:
            hint = renamed_hint(f"{prefix}{key}") or did_you_mean(key, fields)
            raise UserError(f'There is no field "{prefix}{key}"{hint}')
    values = {}
    for key, item in tree.items():
        hint, name = hints[key], f"{prefix}{key}"
        values[key] = from_dict(hint, item, f"{name}.") if dataclasses.is_dataclass(hint) else coerce(item, hint, name)
        _check_range(values[key], fields[key].metadata, name)
    return cls(**values)


def coerce(value, hint, name):
    """Checks `value` against a type hint; whole numbers pass as floats and lists as tuples."""
    inner = _optional(hint)
    if inner is not None:
        # On a command line, None is a word.
        return None if value in (None, "None") else coerce(value, inner, name)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple and isinstance(value, (list, tuple)):
        kinds = [args[0]] * len(value) if args[-1] is Ellipsis else args
        if len(kinds) == len(value):
            items = enumerate(zip(value, kinds, strict=True))
            return tuple(coerce(v, k, f"{name}[{i}]") for i, (v, k) in items)
    elif dataclasses.is_dataclass(hint):
        return from_dict(hint, value, f"{name}.")
    elif hint is Mapping and isinstance(value, Mapping):
        return {k: list(v) if isinstance(v, (range, tuple)) else v for k, v in value.items()}
    elif hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    elif hint in (int, str, bool) and type(value) is hint:
        return value
    raise UserError(f"{name} must be of type {type_name(hint)}, got {value!r}.")


def _check_range(value, meta, name):
    if not meta or value is None:
        return
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{name} must be a finite number, got {value!r}.")
    if meta["choices"] and value not in meta["choices"]:
        raise UserError(f"{name} cannot be {value!r}{did_you_mean(value, meta['choices'])}")
    bounds = {
        "ge": ("at least", lambda v, b: v >= b),
        "gt": ("more than", lambda v, b: v > b),
        "le": ("at most", lambda v, b: v <= b),
        "lt": ("less than", lambda v, b: v < b),
    }
    for key, (words, holds) in bounds.items():
        if meta[key] is not None and not holds(value, meta[key]):
            raise UserError(f"{name} must be {words} {meta[key]}, got {value!r}.")
