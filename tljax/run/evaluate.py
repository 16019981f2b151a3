"""A finished run's best model, and its metrics again."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from tljax import data as data_of
from tljax.config import Config
from tljax.errors import UserError
from tljax.inference.predictor import Predictor
from tljax.models.params import Variables
from tljax.report.markdown import format_number
from tljax.run.workdir import WorkDir, diff_configs
from tljax.storage.checkpoints import CheckpointManager
from tljax.strategies import with_preset_head
from tljax.tasks import Task
from tljax.weights import Preprocess, params_hash


def evaluate(config: Config, console: Console) -> dict:
    """Judges the best model of a run again, on validation and test, and says whether the numbers are the recorded ones.

    This opens the test split once more; it chooses nothing.
    """
    network, best, recorded = finished(config)
    data = data_of.load(config.data, config.seed, network.task.name)
    if changed := diff_configs(recorded["data"], data.describe()):
        raise UserError(f"The data are not those of the run: {'; '.join(changed)}.")
    again = dict(recorded)
    again["valid"], _ = network.evaluate(best, data.valid)
    again["test"], _ = network.evaluate(best, data.test.open())
    again["parameters_digest"] = params_hash(best)
    show(again, network.task, config.workdir, console)
    worst = max(
        (
            abs(again[split][key] - recorded[split][key])
            for split in ("valid", "test")
            for key, _ in network.task.metrics
            if recorded[split][key] is not None
        ),
        default=0.0,
    )
    same = again["parameters_digest"] == recorded["parameters_digest"]
    console.print(
        f"The parameters are {'the recorded ones' if same else 'NOT the recorded ones'}; the largest difference from "
        f"the recorded metrics is {worst:.2g}.",
        highlight=False,
    )
    WorkDir(config.workdir).write("evaluation.json", again)
    return again


def show(result: dict, task: Task, workdir: str, console: Console) -> None:
    """The table of a result."""
    table = Table()
    for name in ("metric", "validation", "test"):
        table.add_column(name, justify="left" if name == "metric" else "right")
    for key, name in task.metrics:
        table.add_row(name, format_number(result["valid"][key]), format_number(result["test"][key]))
    console.print(table)
    console.print(f"Report: {workdir}/report.md", highlight=False, markup=False)


def finished(config: Config) -> tuple[Predictor, Variables, dict]:
    """The network of a finished run, its best leaves, and its result; neither data nor source weights are needed."""
    config, result = with_preset_head(config), WorkDir(config.workdir).read("result.json")
    network = Predictor.build(config, result["data"]["classes"], Preprocess.from_dict(result["preprocess"]))
    with CheckpointManager(Path(config.workdir)) as checkpoints:
        leaves = checkpoints.load_variables(checkpoints.best)
        return network, network.mesh.put({path: leaves[path] for path in network.flat.variables}), result
