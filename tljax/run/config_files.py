"""Config files: `FILE.py` with a function `get_config`, which may take one argument."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

from tljax import config as schema
from tljax.config import Config
from tljax.config.renamed import renamed_hint
from tljax.errors import UserError

# What a config file can raise. A misspelt key is an AttributeError of the locked ConfigDict, which names the nearest.
CONFIG_ERRORS = (AttributeError, ImportError, KeyError, NameError, OSError, SyntaxError, TypeError, ValueError)


def load_config_file(name: str | Path) -> Config:
    """Return the validated config of `FILE.py` or `FILE.py:ARGUMENT`; an unset workdir is None.

    Raises:
      UserError: no such file, or an error in it.
    """
    file, _, argument = str(name).partition(":")
    path = Path(file)
    if not path.is_file():
        raise UserError(f"There is no config file {path}.")
    spec = importlib.util.spec_from_file_location(f"tljax_config_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config_dict = module.get_config(*([argument] if argument else []))
    except CONFIG_ERRORS as error:
        raise UserError(f"{path}: {one_line(error)}") from error
    return schema.parse(config_dict)


def run_name(file: str) -> str:
    """Return the name of a config file's run: NAME for FOLDER/NAME.py, NAME-ARGUMENT for FOLDER/NAME.py:ARGUMENT."""
    path, _, argument = file.partition(":")
    return Path(path).stem + (f"-{argument}" if argument else "")


def one_line(error: Exception) -> str:
    """Return the message of an exception as one line."""
    text = str(error.args[0]) if error.args else str(error)
    # Some messages are the repr of a message; some contain a whole traceback, whose last line is the message.
    lines = [line.strip() for line in text.strip("'").replace("\\n", "\n").splitlines() if line.strip()]
    if any(line.startswith("Traceback") for line in lines):
        return lines[-1].partition(": ")[2] or lines[-1]
    # ml_collections lists all fields before its suggestion: only the suggestion is kept.
    hint = next((line for line in lines if line.startswith("Did you mean")), None)
    key = re.match(r"Key \"(\w+)\" does not exist", lines[0]) if lines else None
    if key and renamed_hint(key[1]):
        return f'There is no field "{key[1]}"{renamed_hint(key[1])}'
    return f"{lines[0].split('. Other fields')[0]}; {hint[0].lower()}{hint[1:]}" if hint else " ".join(lines)
