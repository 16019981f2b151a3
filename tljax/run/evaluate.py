"""`--mode=evaluate`: load the best model of a finished run and compute its metrics again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tljax import data as data_lib
from tljax import plugins
from tljax.config import Config
from tljax.errors import UserError
from tljax.inference.predictor import Predictor
from tljax.models.params import Variables
from tljax.report.markdown import format_number
from tljax.run.workdir import WorkDir, diff_configs
from tljax.storage.checkpoints import CheckpointManager
from tljax.strategies import with_preset_head
from tljax.tasks import Metric
from tljax.weights import Preprocess, params_hash


def evaluate(config: Config, console: Console) -> dict:
    """Evaluate the best model of a run on validation and test, and compare the metrics with the recorded ones.

    The test split is opened once more, but nothing is chosen by it. The result is written to evaluation.json.

    Args:
      config: of a finished run.
      console: for the table of metrics and the comparison.

    Returns:
      The entries of result.json with the new metrics.

    Raises:
      UserError: the data differ from those of the run.
    """
    predictor, variables, recorded = load_finished(config)
    data = data_lib.load(config.data, config.seed, predictor.task.labels, predictor.preprocess)
    if differences := diff_configs(recorded["data"], data.describe()):
        raise UserError(f"The data differ from those of the run: {'; '.join(differences)}.")
    if changed := plugins.changed_plugins(recorded.get("files", {})):
        console.print(f"Warning: changed since the run: {', '.join(changed)}", style="yellow", highlight=False)
    result = dict(recorded)
    result["valid"], _ = predictor.evaluate(variables, data.valid)
    result["test"], _ = predictor.evaluate(variables, data.test.open())
    result["parameters_digest"] = params_hash(variables)
    print_metrics(result, predictor.metrics, config.folder, console)
    largest = max(
        (
            abs(result[split][name] - recorded[split][name])
            for split in ("valid", "test")
            for name in [metric.name for metric in predictor.metrics]
            if None not in (result[split][name], recorded[split].get(name))
        ),
        default=0.0,
    )
    same = result["parameters_digest"] == recorded["parameters_digest"]
    console.print(
        f"The parameters are {'the recorded ones' if same else 'NOT the recorded ones'}; the largest difference from "
        f"the recorded metrics is {largest:.2g}.",
        highlight=False,
    )
    WorkDir(config.folder).write("evaluation.json", result)
    return result


def print_metrics(result: dict, metrics: Sequence[Metric], workdir: Path, console: Console) -> None:
    """Print a table of the validation and test metrics in a result, and the path of the report."""
    table = Table()
    for name in ("metric", "validation", "test"):
        table.add_column(name, justify="left" if name == "metric" else "right")
    for metric in metrics:
        values = (format_number(result[split][metric.name]) for split in ("valid", "test"))
        table.add_row(metric.label, *values)
    console.print(table)
    console.print(f"Report: {workdir}/report.md", highlight=False, markup=False)


def load_finished(config: Config) -> tuple[Predictor, Variables, dict]:
    """Load the best model of a finished run; neither the data nor the source weights are needed.

    Returns:
      The predictor, the variables on its devices, and the content of result.json.
    """
    config = with_preset_head(config)
    result = WorkDir(config.folder).read("result.json")
    assert result is not None  # the run is finished
    predictor = Predictor.build(config, result["data"]["classes"], Preprocess.from_dict(result["preprocess"]))
    with CheckpointManager(config.folder) as checkpoints:
        saved = checkpoints.load_variables(checkpoints.best)
    # Training may have saved variables of auxiliary outputs that the predictor's model does not have.
    variables = {path: saved[path] for path in predictor.flat.variables}
    return predictor, predictor.mesh.put(variables), result
