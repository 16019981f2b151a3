"""The JSON files of a work directory, of this version or an older one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tljax.config import Config, parse
from tljax.config.renamed import upgrade
from tljax.errors import UserError

# Keys of result.json, inputs.json and features.json of older versions.
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
}


def read_json(path: Path) -> Any:
    """Return what a JSON file holds, with today's keys.

    Raises:
      UserError: it is not JSON.
      FileNotFoundError: there is no such file.
    """
    try:
        return _with_new_keys(json.loads(path.read_text()))
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is damaged: {error}.") from error


def read_config(path: Path) -> Config:
    """Return the config of a config.json; fields that are newer than the file have their defaults.

    Raises:
      UserError: it is not JSON, or has fields that never existed.
      FileNotFoundError: there is no such file.
    """
    try:
        return parse(upgrade(json.loads(path.read_text())))
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is damaged: {error}.") from error


def _with_new_keys(value: Any) -> Any:
    if isinstance(value, dict):
        return {RENAMED_KEYS.get(key, key): _with_new_keys(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_new_keys(item) for item in value]
    return value
