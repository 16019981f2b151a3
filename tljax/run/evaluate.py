"""A finished run's best model, and its metrics again."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from tljax import data as data_of
from tljax.config import Config, differences
from tljax.errors import UserError
from tljax.inference.predictor import Network
from tljax.models.params import Variables
from tljax.report.markdown import number
from tljax.run.workdir import WorkDir
from tljax.storage.checkpoints import Checkpoints
from tljax.strategies import with_preset_head
from tljax.tasks import Task
from tljax.weights import Preprocess, parameters_digest


def evaluate(config: Config, console: Console) -> dict:
    """Judges the best model of a run again, on validation and test, and says whether the numbers are the recorded ones.

    This opens the test split once more; it chooses nothing.
    """
    network, best, recorded = finished(config)
    data = data_of.load(config.data, config.seed, network.task.name, config.train.on_bad_file)
    if changed := differences(recorded["data"], data.describe()):
        raise UserError(f"The data are not those of the run: {'; '.join(changed)}.")
    again = dict(recorded)
    again["valid"], _ = network.judge(best, data.valid)
    again["test"], _ = network.judge(best, data.test.open())
    again["parameters_digest"] = parameters_digest(best)
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
        table.add_row(name, number(result["valid"][key]), number(result["test"][key]))
    console.print(table)
    console.print(f"Report: {workdir}/report.md", highlight=False, markup=False)


def finished(config: Config) -> tuple[Network, Variables, dict]:
    """The network of a finished run, its best leaves, and its result; neither data nor source weights are needed."""
    config, result = with_preset_head(config), WorkDir(config.workdir).read("result.json")
    network = Network.build(config, result["data"]["classes"], Preprocess.from_dict(result["preprocess"]))
    with Checkpoints(Path(config.workdir)) as checkpoints:
        leaves = checkpoints.read_params(checkpoints.best)
        return network, network.mesh.put({path: leaves[path] for path in network.leaves()}), result
