"""JSON files of a work directory, written by this version or an older one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tljax.config import Config, parse
from tljax.config.renamed import upgrade
from tljax.errors import UserError

# Keys of result.json, inputs.json and features.json in older versions, with their current names.
RENAMED_KEYS = {
    "picture": "image_shape",
    "pictures": "images",
    "shared_pictures": "duplicates",
    "learned_parameters": "trainable_parameters",
    "objectives": "losses",
    "blocks": "cells",
    "single": "partial",
    "multiples": "lr_multipliers",
    "moves": "batch_stats",
    "where": "storage",
    "marks": "badges",
}


def read_json(path: Path) -> Any:
    """Return the content of a JSON file; keys of older versions are renamed to the current ones.

    Raises:
      UserError: the file is not JSON.
      FileNotFoundError: the file does not exist.
    """
    try:
        return _rename_keys(json.loads(path.read_text()))
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is damaged: {error}.") from error


def read_config(path: Path) -> Config:
    """Return the config in a config.json; fields that are newer than the file have their defaults.

    Raises:
      UserError: the file is not JSON, or has unknown fields.
      FileNotFoundError: the file does not exist.
    """
    try:
        return parse(upgrade(json.loads(path.read_text())))
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is damaged: {error}.") from error


def _rename_keys(value: Any) -> Any:
    if isinstance(value, dict):
        # The settings of a sweep's trial have names and values of config fields.
        return {RENAMED_KEYS.get(k, k): v if k == "settings" else _rename_keys(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_rename_keys(item) for item in value]
    return value
