"""Config files, and weights that another recipe makes: `model.weights = "recipe:configs/NAME.py"`."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path

from rich.console import Console

from tljax import config as schema
from tljax.config import Config
from tljax.errors import UserError

# What a config file can raise; a misspelt key is an AttributeError of the locked ConfigDict, which names the nearest.
CONFIG_ERRORS = (AttributeError, ImportError, KeyError, NameError, OSError, SyntaxError, TypeError, ValueError)


def load_config_file(path: str | Path) -> Config:
    """The checked config of a file with `get_config`; an unset workdir becomes None."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"There is no config file {path}.")
    spec = importlib.util.spec_from_file_location(f"tljax_config_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        made = module.get_config()
    except CONFIG_ERRORS as error:
        raise UserError(f"{path}: {sentence(error)}") from error
    return schema.parse(made)


def with_made_weights(config: Config, root: Path, console: Console | None) -> Config:
    """Runs the recipe that `model.weights` names, unless that is done, and points the weights at its workdir.

    Args:
      config: any; without a recipe it comes back as it is.
      root: folder in which the recipe's run lies, under the name of its file, unless its config says where.
      console: for the recipe's log; None runs nothing, and leaves weights that do not exist yet unset.
    """
    source = config.model.weights
    if source is None or not source.startswith("recipe:"):
        return config
    path = Path(source.removeprefix("recipe:"))
    recipe = load_config_file(path)
    workdir = recipe.workdir or str(root / path.stem)
    recipe = dataclasses.replace(recipe, workdir=workdir)
    made = {"weights": f"workdir:{workdir}"}
    if console is not None:
        from tljax.run.train import train

        if not (Path(workdir) / "result.json").is_file():
            console.print(f"Weights first: {path} in {workdir}", highlight=False)
        train(with_made_weights(recipe, root, console), console, lines=False)
    elif not (Path(workdir) / "result.json").is_file():
        from tljax.run.prepare import prepare

        made = {"weights": None, "preprocess": prepare(with_made_weights(recipe, root, None)).preprocess.name}
    return dataclasses.replace(config, model=dataclasses.replace(config.model, **made))


def sentence(error: Exception) -> str:
    """An exception's message as one line."""
    text = str(error.args[0]) if error.args else str(error)
    # Some of these messages come as the repr of a message, some with a whole traceback, of which the end counts.
    lines = [line.strip() for line in text.strip("'").replace("\\n", "\n").splitlines() if line.strip()]
    # ml_collections lists all fields before its suggestion; the suggestion is what helps.
    if any(line.startswith("Traceback") for line in lines):
        return lines[-1].partition(": ")[2] or lines[-1]
    hint = next((line for line in lines if line.startswith("Did you mean")), None)
    return f"{lines[0].split('. Other fields')[0]}; {hint[0].lower()}{hint[1:]}" if hint else " ".join(lines)
