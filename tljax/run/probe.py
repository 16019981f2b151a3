"""`--mode=probe`: ready classifiers on the features of a frozen network, chosen on validation."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from tljax.config import Config
from tljax.data import Split
from tljax.features.probes import PROBES, FeatureRows, fit_best
from tljax.report.tables import footnote, mean_interval, percent
from tljax.run.features import FeatureExtractor, load_extractor
from tljax.run.workdir import WorkDir
from tljax.tasks import classification


def run(configs: Sequence[Config], workdir: str, console: Console) -> dict:
    """Probes one config, or one per seed, shows the table, and returns and writes WORKDIR/probe.json.

    Of one config it has `best`, the name of the probe that is best on validation, and `probes`: setting, scores on
    `valid` and `test`, and seconds of each; of several, the same with mean accuracies and half-widths of their 95 %
    intervals, and `cells`, the folders that hold each seed's own.
    """
    results = [probe(config, console) for config in configs]
    rows = {name: _summarise([result["probes"][name] for result in results]) for name in results[0]["probes"]}
    best = max(rows, key=lambda name: rows[name]["valid"][0]) if len(results) > 1 else results[0]["best"]
    summary = results[0]
    if len(results) > 1:
        places = [str(Path(config.workdir).relative_to(workdir)) for config in configs]
        summary = {"best": best, "seeds": [config.seed for config in configs], "probes": rows, "cells": places}
        WorkDir(workdir).write("probe.json", summary)
    _show(rows, best, len(results), console)
    console.print(f"Written to {workdir}/probe.json", highlight=False, markup=False, soft_wrap=True)
    return summary


def probe(config: Config, console: Console) -> dict:
    """Fits `features.probes` on train, chooses their settings on validation, then opens the test split once for all."""
    trunk = load_extractor(config, console, default=lambda stages: stages[-1:])
    train, valid = (_rows(trunk, getattr(trunk.data, name), name, console) for name in ("train", "valid"))
    classes, chosen, seconds = len(trunk.predictor.classes), {}, {}
    for name in dict.fromkeys(config.features.probes):
        started = time.monotonic()
        with console.status(f"fitting {name}"):
            chosen[name] = fit_best(PROBES[name], train, valid, classes)
        seconds[name] = time.monotonic() - started
    features, labels = _rows(trunk, trunk.data.test.open(), "test", console)
    result = {
        "best": max(chosen, key=lambda name: chosen[name].rank),
        "probes": {
            name: {
                "setting": {PROBES[name].setting: found.value},
                "valid": found.scores,
                "test": classification.compute_metrics(labels, found.predict(features)),
                "seconds": seconds[name],
            }
            for name, found in chosen.items()
        },
        "features": features.shape[1],
        "about": trunk.describe | {"data": trunk.data.describe()},
    }
    folder = WorkDir(config.workdir)
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.write("probe.json", result)
    return result


def _rows(trunk: FeatureExtractor, split: Split, name: str, console: Console) -> FeatureRows:
    """Features of all stages side by side, [N, D], and labels [N]."""
    maps = trunk.maps(split, name, console)
    return np.concatenate([x.reshape(len(x), -1) for x in maps.values()], axis=1), split.labels


def _summarise(found: list[dict]) -> dict:
    """One probe over seeds: its settings, mean accuracies with their half-widths, and mean seconds."""
    ((setting, _),) = found[0]["setting"].items()
    return {
        "setting": {setting: [one["setting"][setting] for one in found]},
        "valid": mean_interval([one["valid"]["accuracy"] for one in found]),
        "test": mean_interval([one["test"]["accuracy"] for one in found]),
        "seconds": float(np.mean([one["seconds"] for one in found])),
    }


def _show(rows: dict[str, dict], best: str, seeds: int, console: Console) -> None:
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
    once = "once a seed" if seeds > 1 else "once"
    for line in (
        f"* best on validation: its test accuracy is the one to report; the test split was opened {once}.",
        footnote([{"seeds": seeds}]),
    ):
        if line:
            console.print(line, highlight=False, soft_wrap=True)
