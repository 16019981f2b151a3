"""Config files: `FILE.py` with a function `get_config`, which may take an argument."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

from tljax import config as schema
from tljax.config import Config
from tljax.config.renamed import renamed_hint
from tljax.errors import UserError

# What a config file can raise; a misspelt key is an AttributeError of the locked ConfigDict, which names the nearest.
CONFIG_ERRORS = (AttributeError, ImportError, KeyError, NameError, OSError, SyntaxError, TypeError, ValueError)


def load_config_file(name: str | Path) -> Config:
    """The checked config of `FILE.py` or `FILE.py:ARGUMENT` of its `get_config`; an unset workdir becomes None."""
    file, _, argument = str(name).partition(":")
    path = Path(file)
    if not path.is_file():
        raise UserError(f"There is no config file {path}.")
    spec = importlib.util.spec_from_file_location(f"tljax_config_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        made = module.get_config(*([argument] if argument else []))
    except CONFIG_ERRORS as error:
        raise UserError(f"{path}: {one_line(error)}") from error
    return schema.parse(made)


def run_name(file: str) -> str:
    """The name of a config file's run: `NAME` of `FOLDER/NAME.py`, `NAME-ARGUMENT` of `FOLDER/NAME.py:ARGUMENT`."""
    path, _, argument = file.partition(":")
    return Path(path).stem + (f"-{argument}" if argument else "")


def one_line(error: Exception) -> str:
    """An exception's message as one line."""
    text = str(error.args[0]) if error.args else str(error)
    # Some of these messages come as the repr of a message, some with a whole traceback, of which the end counts.
    lines = [line.strip() for line in text.strip("'").replace("\\n", "\n").splitlines() if line.strip()]
    # ml_collections lists all fields before its suggestion; the suggestion is what helps.
    if any(line.startswith("Traceback") for line in lines):
        return lines[-1].partition(": ")[2] or lines[-1]
    hint = next((line for line in lines if line.startswith("Did you mean")), None)
    key = re.match(r"Key \"(\w+)\" does not exist", lines[0]) if lines else None
    if key and renamed_hint(key[1]):
        return f'There is no field "{key[1]}"{renamed_hint(key[1])}'
    return f"{lines[0].split('. Other fields')[0]}; {hint[0].lower()}{hint[1:]}" if hint else " ".join(lines)
