"""Weights that another recipe makes: `model.weights = "recipe:configs/NAME.py"`, and teachers likewise."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from tljax.config import Config
from tljax.run.config_files import load_config_file, run_name
from tljax.run.train import train


def recipes_of(config: Config) -> list[str]:
    """The recipes that a config starts from: those of `model.weights` and `strategy.teachers`."""
    names = (config.model.weights, *config.strategy.teachers)
    return list(dict.fromkeys(name for name in names if name and name.startswith("recipe:")))


def run_recipes(configs: Sequence[Config], root: Path, console: Console | None) -> list[Config]:
    """Runs the recipes that configs start from, unless that is done, and points to their runs.

    Args:
      configs: any; one without a recipe comes back as it is.
      root: folder in which a recipe's run lies, under the name of its file, unless its config says where.
      console: for the recipes' logs; None runs nothing, and leaves what does not exist yet as it is.
    """
    names = dict.fromkeys(name for config in configs for name in recipes_of(config))
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
    file = name.removeprefix("recipe:")
    recipe = load_config_file(file)
    workdir = recipe.workdir or str(root / run_name(file))
    (recipe,) = run_recipes([dataclasses.replace(recipe, workdir=workdir)], root, console)
    finished = (Path(workdir) / "result.json").is_file()
    if console is not None:
        if not finished:
            console.print(f"Weights first: {file} in {workdir}", highlight=False)
        train(recipe, console, lines=False)
    return f"workdir:{workdir}" if finished or console is not None else name
