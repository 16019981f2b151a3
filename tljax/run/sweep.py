"""A config with a `sweep`: one run per combination, chosen on validation, compared in a table.

Two kinds of field are varied. What is *compared* (seed, strategy, model, data) is reported for every value. What is
*tuned* (optim, train, augment) is chosen by the mean validation score over seeds, within each compared setting, and
only the chosen runs open the test split.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console

from tljax import config as schema
from tljax.config import Config
from tljax.errors import TrainingStopped
from tljax.report import tables
from tljax.run import replica_groups
from tljax.run.recipes import run_recipes
from tljax.run.train import train_replicas
from tljax.run.workdir import WorkDir, config_hash

TUNED = ("optim", "train", "augment")


@dataclasses.dataclass(frozen=True)
class Trial:
    """One run of a sweep: its settings, and the config they make."""

    settings: dict
    config: Config

    def key(self, fields: Iterable[str]) -> str:
        """The settings of these fields, as a name for a group of cells."""
        return ",".join(f"{field}={self.settings[field]}" for field in fields)


def expand_grid(config: Config) -> list[Trial]:
    """Every combination, checked, each with a workdir of its own under `config.workdir`."""
    found, names = [], tables.headers(list(config.sweep))
    for values in itertools.product(*config.sweep.values()):
        settings = dict(zip(config.sweep, values, strict=True))
        name = ",".join(f"{k}={v}" for k, v in zip(names, values, strict=True)).replace("/", "_")
        workdir = str(Path(config.workdir) / "cells" / name)
        found.append(Trial(settings, schema.override(config, {**settings, "sweep": {}, "workdir": workdir})))
    return found


def run(config: Config, console: Console) -> dict:
    """Runs or goes on with a sweep; returns and writes `rows` of the comparison.

    Raises:
      UserError: before anything is written.
    """
    root, made = Path(config.workdir), expand_grid(config)
    # What is wrong with any of them is said before the first one starts.
    planned = run_recipes([c.config for c in drop_seeds(made).values()], root.parent, None)
    for group in _alike(planned).values():
        for _ in replica_groups.plan_groups([planned[i] for i in group]):
            pass
    with WorkDir.create(config, {}) as workdir:
        return _run(config, made, workdir, console)


def _run(config: Config, made: list[Trial], workdir: WorkDir, console: Console) -> dict:
    root = workdir.path
    configs = run_recipes([c.config for c in made], root.parent, console)
    made = [dataclasses.replace(c, config=config) for c, config in zip(made, configs, strict=True)]
    tuning = [name for name in config.sweep if name.split(".")[0] in TUNED]
    results = _run_cells(made, console, open_test=not tuning)
    chosen = range(len(made))
    if tuning:
        chosen = choose_settings(made, results, tuning)
        for i, result in zip(chosen, _run_cells([made[i] for i in chosen], console, open_test=True), strict=True):
            results[i] = result
    if failed := [result for i, result in enumerate(results) if i in chosen and isinstance(result, TrainingStopped)]:
        raise failed[0]
    rows = tables.summarize_trials([{"settings": made[i].settings, "result": results[i]} for i in chosen])
    summary = {
        "rows": rows,
        "tuned": tuning,
        "cells": [
            {
                "settings": cell.settings,
                "workdir": str(Path(cell.config.workdir).relative_to(root)),
                "valid": None if isinstance(result, TrainingStopped) else tables.selection_score(result, "valid"),
                "test": tables.selection_score(result, "test") if _tested(result) else None,
            }
            for cell, result in zip(made, results, strict=True)
        ],
        "config_digest": config_hash(config),
    }
    workdir.write("result.json", summary)
    if config.report.figures:
        from tljax.report import figures, heat_map  # Matplotlib takes its time to import

        figures.draw_sweep(rows, root / "figures" / "sweep.png")
        heat_map.draw_heat_map(summary["cells"], tuning, root / "figures" / "heat_map.png")
    _write_report(root, rows, summary, config)
    console.print(tables.rich_table(rows))
    console.print(f"Report: {root / 'report.md'}", highlight=False, markup=False, soft_wrap=True)
    return summary


def drop_seeds(made: list[Trial]) -> dict[str, Trial]:
    """The first cell of every setting but the seed, by the name of the setting."""
    kept: dict[str, Trial] = {}
    for cell in made:
        kept.setdefault(cell.key(field for field in cell.settings if field != "seed"), cell)
    return kept


def choose_settings(made: list[Trial], results: list[dict], tuning: list[str]) -> list[int]:
    """Indices of the cells whose tuned settings have the best mean validation score over seeds.

    One set of tuned settings per compared setting; of equals, the first.
    """
    groups: dict[str, dict[str, list[int]]] = {}
    compared = [field for field in made[0].settings if field not in tuning and field != "seed"]
    for i, cell in enumerate(made):
        groups.setdefault(cell.key(compared), {}).setdefault(cell.key(tuning), []).append(i)

    def mean(indices: list[int]) -> float:
        if any(isinstance(results[i], TrainingStopped) for i in indices):
            return -1.0  # it diverged: any other is better
        return float(np.mean([tables.selection_score(results[i], "valid") for i in indices]))

    return [i for group in groups.values() for i in max(group.values(), key=mean)]


def _run_cells(made: list[Trial], console: Console, *, open_test: bool) -> list[dict | TrainingStopped]:
    """Runs cells, those that differ in numbers alone together; the results in the order of the cells."""
    results, done = [None] * len(made), 0
    for group in _alike([cell.config for cell in made]).values():
        for batch in replica_groups.plan_groups([made[i].config for i in group]):
            outcomes = train_replicas([run for _, run in batch], console, open_test=open_test, lines=False)
            for (place, _), result in zip(batch, outcomes, strict=True):
                results[group[place]], done = result, done + 1
                _tell(made[group[place]], result, f"[{done}/{len(made)}]", console)
    return results


def _alike(configs: Sequence[Config]) -> dict[str, list[int]]:
    """Places of the configs that may train together."""
    groups: dict[str, list[int]] = {}
    for place, config in enumerate(configs):
        groups.setdefault(replica_groups.group_key(config), []).append(place)
    return groups


def _tested(result: dict | TrainingStopped) -> bool:
    return not isinstance(result, TrainingStopped) and "test" in result


def _tell(cell: Trial, result: dict | TrainingStopped, which: str, console: Console) -> None:
    name = ", ".join(f"{tables.short_field_name(k)} {v}" for k, v in cell.settings.items())
    if isinstance(result, TrainingStopped):
        console.print(f"{which} {name}: {result}", highlight=False, markup=False)
        return
    test = f", test {100 * tables.selection_score(result, 'test'):.1f} %" if "test" in result else ""
    valid = f"validation {100 * tables.selection_score(result, 'valid'):.1f} %"
    console.print(f"{which} {name}: {valid}{test}, {result['seconds']:.1f} s", highlight=False, markup=False)


def _write_report(root: Path, rows: list[dict], summary: dict, config: Config) -> None:
    how = (
        f"{', '.join(summary['tuned'])} chosen by the mean validation score over seeds; only the chosen runs opened "
        "the test split, once each."
        if summary["tuned"]
        else "Every run chose its best epoch on validation and then opened the test split, once."
    )
    lines = [f"# Comparison: {root.name}", "", tables.markdown_table(rows), how, ""]
    if config.report.figures:
        lines += ["![Validation and test accuracy](figures/sweep.png)", ""]
        if (root / "figures" / "heat_map.png").exists():
            lines += ["![Validation accuracy over what was tuned](figures/heat_map.png)", ""]
    lines += ["| run | validation % | test % |", "|---|---:|---:|"]
    for cell in summary["cells"]:
        test = tables.MISSING if cell["test"] is None else f"{100 * cell['test']:.2f}"
        valid = "diverged" if cell["valid"] is None else f"{100 * cell['valid']:.2f}"
        name = tables.escape(Path(cell["workdir"]).name)
        link = name if cell["test"] is None else f"[{name}](<{cell['workdir']}/report.md>)"
        lines.append(f"| {link} | {valid} | {test} |")
    (root / "report.md").write_text("\n".join(lines) + "\n")
