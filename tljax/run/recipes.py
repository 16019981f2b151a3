"""Recipes: weights of another config's run, `model.weights = "recipe:configs/NAME.py"`; likewise for teachers."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from tljax.config import Config
from tljax.run.config_files import load_config_file, run_name
from tljax.run.train import train


def recipes_of(config: Config) -> list[str]:
    """Return the recipes among `model.weights` and `strategy.teachers`."""
    names = (config.model.weights, *config.strategy.teachers)
    return list(dict.fromkeys(name for name in names if name and name.startswith("recipe:")))


def run_recipes(configs: Sequence[Config], root: Path, console: Console | None) -> list[Config]:
    """Train the recipes of configs, unless they are finished, and return the configs with the weights of these runs.

    Args:
      configs: a config without a recipe is returned unchanged.
      root: folder of the recipes' work directories, each named after its file, unless the recipe sets `workdir`.
      console: for the logs; None: nothing is trained, and recipes that are not finished stay in the configs.
    """
    names = dict.fromkeys(name for config in configs for name in recipes_of(config))
    weights = {name: _run_recipe(name, root, console) for name in names}
    return [_with_weights(config, weights) for config in configs]


def _with_weights(config: Config, weights: dict[str, str]) -> Config:
    """Return the config with recipes replaced, by {recipe: weights}."""
    model = config.model
    teachers = tuple(weights.get(name, name) for name in config.strategy.teachers)
    return dataclasses.replace(
        config,
        model=dataclasses.replace(model, weights=model.weights and weights.get(model.weights, model.weights)),
        strategy=dataclasses.replace(config.strategy, teachers=teachers),
    )


def _run_recipe(name: str, root: Path, console: Console | None) -> str:
    """Return `workdir:PATH` of a recipe's run, or the recipe itself if it is not finished and nothing is trained."""
    file = name.removeprefix("recipe:")
    recipe = load_config_file(file)
    workdir = recipe.workdir or str(root / run_name(file))
    (recipe,) = run_recipes([dataclasses.replace(recipe, workdir=workdir)], root, console)
    finished = (Path(workdir) / "result.json").is_file()
    if console is not None:
        if not finished:
            console.print(f"Training the weights of {file} in {workdir}", highlight=False)
        train(recipe, console, lines=False)
    return f"workdir:{workdir}" if finished or console is not None else name
