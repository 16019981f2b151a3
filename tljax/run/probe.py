"""`--mode=probe`: fit scikit-learn classifiers on the features of a frozen network."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from tljax.config import Config
from tljax.data import Split
from tljax.features.probes import PROBES, FeatureRows, FittedProbe, fit_best
from tljax.report.tables import footnote, mean_interval, percent
from tljax.run.features import FeatureExtractor, load_extractor
from tljax.run.workdir import WorkDir
from tljax.tasks import classification


def run(configs: Sequence[Config], workdir: str | Path, console: Console) -> dict:
    """Probe one config, or one per seed, print a table, and write and return WORKDIR/probe.json.

    Args:
      configs: with weights that exist; several differ in their seeds.
      workdir: folder of probe.json.
      console: for progress and the table.

    Returns:
      `best`, the probe with the best validation accuracy, and `probes`: setting, scores on `valid` and `test`, and
      seconds of each. With several configs, the scores are (mean accuracy, half-width of its 95 % interval), and
      `trials` has the folders of the seeds' own probe.json.
    """
    results = [probe_config(config, console) for config in configs]
    rows = {name: _average([result["probes"][name] for result in results]) for name in results[0]["probes"]}
    if len(results) == 1:
        summary = results[0]
    else:
        summary = {
            "best": max(rows, key=lambda name: rows[name]["valid"][0]),
            "seeds": [config.seed for config in configs],
            "probes": rows,
            "trials": [str(config.folder.relative_to(workdir)) for config in configs],
        }
        WorkDir(workdir).write("probe.json", summary)
    _print_table(rows, summary["best"], len(results), console)
    console.print(f"Written to {workdir}/probe.json", highlight=False, markup=False, soft_wrap=True)
    return summary


def probe_config(config: Config, console: Console) -> dict:
    """Probe one config, and write and return its probe.json.

    Probes are fitted on train and their settings chosen on validation; then the test split is opened, once for all.
    """
    extractor = load_extractor(config, console, default_stages=lambda stages: stages[-1:])
    data = extractor.data
    train = _feature_rows(extractor, data.train, "train", console)
    valid = _feature_rows(extractor, data.valid, "valid", console)
    fitted: dict[str, FittedProbe] = {}
    seconds = {}
    for name in dict.fromkeys(config.features.probes):
        started = time.monotonic()
        with console.status(f"fitting {name}"):
            fitted[name] = fit_best(PROBES[name], train, valid, len(extractor.predictor.classes))
        seconds[name] = time.monotonic() - started
    features, labels = _feature_rows(extractor, data.test.open(), "test", console)
    result = {
        "best": max(fitted, key=lambda name: fitted[name].ranking_key),
        "probes": {
            name: {
                "setting": {PROBES[name].hparam: probe.value},
                "valid": probe.scores,
                "test": classification.compute_metrics(labels, probe.predict(features)),
                "seconds": seconds[name],
            }
            for name, probe in fitted.items()
        },
        "features": features.shape[1],
        "about": extractor.about | {"data": data.describe()},
    }
    folder = WorkDir(config.folder)
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.write("probe.json", result)
    return result


def _feature_rows(extractor: FeatureExtractor, split: Split, name: str, console: Console) -> FeatureRows:
    """Return the concatenated features of all stages, [N, D], and the labels [N]."""
    features = extractor.extract(split, name, console)
    return np.concatenate([x.reshape(len(x), -1) for x in features.values()], axis=1), split.labels


def _average(rows: list[dict]) -> dict:
    """Average one probe over seeds: its settings, accuracies (mean, half-width of the interval) and mean seconds."""
    ((setting, _),) = rows[0]["setting"].items()
    return {
        "setting": {setting: [row["setting"][setting] for row in rows]},
        "valid": mean_interval([row["valid"]["accuracy"] for row in rows]),
        "test": mean_interval([row["test"]["accuracy"] for row in rows]),
        "seconds": float(np.mean([row["seconds"] for row in rows])),
    }


def _print_table(rows: dict[str, dict], best: str, seeds: int, console: Console) -> None:
    table = Table()
    for name in ("probe", "setting", "validation %", "test %", "seconds"):
        table.add_column(name, justify="left" if name in ("probe", "setting") else "right")
    for name, row in rows.items():
        ((setting, values),) = row["setting"].items()
        table.add_row(
            f"{name} *" if name == best else name,
            f"{setting} {', '.join(f'{value:g}' for value in dict.fromkeys(values))}",
            percent(row["valid"]),
            percent(row["test"]),
            f"{row['seconds']:.1f}",
            style="bold" if name == best else None,
        )
    console.print(table)
    once = "once per seed" if seeds > 1 else "once"
    for line in (
        f"* best on validation: report its test accuracy. The test split was opened {once}.",
        footnote([{"seeds": seeds}]),
    ):
        if line:
            console.print(line, highlight=False, soft_wrap=True)
