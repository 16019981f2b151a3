"""Config files, and weights that another recipe makes: `model.weights = "recipe:configs/NAME.py"`."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Sequence
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


def named(config: Config) -> list[str]:
    """The recipes that a config starts from: those of `model.weights` and `strategy.teachers`."""
    names = (config.model.weights, *config.strategy.teachers)
    return list(dict.fromkeys(name for name in names if name and name.startswith("recipe:")))


def with_made_weights(configs: Sequence[Config], root: Path, console: Console | None) -> list[Config]:
    """Runs the recipes that configs start from, unless that is done, and points to their runs.

    Args:
      configs: any; one without a recipe comes back as it is.
      root: folder in which a recipe's run lies, under the name of its file, unless its config says where.
      console: for the recipes' logs; None runs nothing, and leaves what does not exist yet as it is.
    """
    names = dict.fromkeys(name for config in configs for name in named(config))
    made = {name: _make(name, root, console) for name in names}

    def settled(config: Config) -> Config:
        weights = made.get(config.model.weights, config.model.weights)
        teachers = tuple(made.get(name, name) for name in config.strategy.teachers)
        return dataclasses.replace(
            config,
            model=dataclasses.replace(config.model, weights=weights),
            strategy=dataclasses.replace(config.strategy, teachers=teachers),
        )

    return [settled(config) for config in configs]


def _make(name: str, root: Path, console: Console | None) -> str:
    """The run of a recipe, as weights are named, or the recipe where it has none yet and none is to be made."""
    path = Path(name.removeprefix("recipe:"))
    recipe = load_config_file(path)
    workdir = recipe.workdir or str(root / path.stem)
    (recipe,) = with_made_weights([dataclasses.replace(recipe, workdir=workdir)], root, console)
    finished = (Path(workdir) / "result.json").is_file()
    if console is not None:
        from tljax.run.train import train

        if not finished:
            console.print(f"Weights first: {path} in {workdir}", highlight=False)
        train(recipe, console, lines=False)
    return f"workdir:{workdir}" if finished or console is not None else name


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
