"""Recipes as sources of weights, of single runs and of sweeps."""

from pathlib import Path

import pytest

from tljax import config as schema
from tljax.errors import UserError
from tljax.run import cli, plan, sweep
from tljax.run.config_files import load_config_file
from tljax.run.recipes import run_recipes
from tljax.run.workdir import WorkDir

RECIPE = """
from tljax import config

def get_config():
    c = config.default()
    c.data.classes = (0, 1)
    c.data.labels_per_class = 8
    c.model.backbone, c.model.options = "vgg11_bn", {"blocks": ((4,), (8,))}
    c.model.preprocess = "unit"
    c.strategy.name = "scratch"
    c.train.batch_size = 8
    c.train.epochs = 1
    c.report.figures = c.report.tensorboard = False
    return c
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "source.py"
    path.write_text(RECIPE)
    return path


def test_sweep_trains_recipe_and_compares_strategies(tiny, recipe, tmp_path, console, capsys):
    tiny.model.weights = f"recipe:{recipe}"
    tiny.strategy.phases = ()
    tiny.strategy.name = "full"
    # As many classes as the recipe and no randomness: the same programs.
    tiny.data.classes, tiny.model.dropout, tiny.augment.crop_padding = (2, 3), 0.0, 0
    tiny.train.epochs = 1
    tiny.sweep = {"strategy.name": ["scratch", "feature_extraction"]}
    tiny.workdir = str(tmp_path / "runs" / "compare")
    config = schema.parse(tiny)
    plan.print_plan(config, console)
    assert not (tmp_path / "runs").exists()
    assert "strategy.name=feature_extraction" in console.export_text()

    summary = sweep.run(config, console)
    source = WorkDir(tmp_path / "runs" / "source").read("result.json")
    results = {
        trial["settings"]["strategy.name"]: WorkDir(Path(tiny.workdir) / trial["workdir"]).read("result.json")
        for trial in summary["trials"]
    }
    assert results["scratch"]["weights"] is None
    assert results["feature_extraction"]["weights"]["sha256"] == source["parameters_digest"]
    # The preprocessing is that of the weights, also in the run from scratch: both read the same images.
    assert {r["preprocess"]["name"] for r in results.values()} == {"unit"}
    assert results["feature_extraction"]["phases"][0]["trainable_parameters"] == 8 * 2 + 2
    again = sweep.run(config, console)
    assert again["rows"] == summary["rows"]
    assert cli.main(["run.py", "--mode=evaluate", f"--workdir={tiny.workdir}"]) == 2
    assert "holds a sweep: choose one of its runs, such as" in capsys.readouterr().err


def test_run_recipes_without_and_with_missing_recipe(tiny, tmp_path, console):
    config = schema.parse(tiny)
    assert run_recipes([config], tmp_path, console) == [config]
    tiny.model.weights = "recipe:nowhere.py"
    with pytest.raises(UserError, match=r"no config file nowhere\.py"):
        run_recipes([schema.parse(tiny)], tmp_path, console)


def test_load_config_file_error(tmp_path):
    path = tmp_path / "broken.py"
    path.write_text("def get_config():\n    return undefined\n")
    with pytest.raises(UserError, match="name 'undefined' is not defined"):
        load_config_file(path)


def test_config_is_checked_before_recipe_runs(recipe, tmp_path, capsys):
    path = tmp_path / "target.py"
    path.write_text(
        "from tljax import config\n"
        "def get_config():\n"
        "    c = config.default()\n"
        f"    c.model.weights = 'recipe:{recipe}'\n"
        "    c.model.out_stage = 'stage9'\n"
        "    return c\n"
    )
    assert cli.main(["run.py", f"--config={path}", f"--workdir={tmp_path}/runs/target"]) == 2
    assert 'no stage "stage9"' in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
