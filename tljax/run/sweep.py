"""Sweeps: train one trial per combination of settings, choose on validation, and compare in a table.

Fields of a sweep are *tuned* (those of `optim`, `train` and `augment`) or *compared* (all others, such as strategy and
data). Results are reported for every combination of compared fields. Within each, the tuned fields are chosen by the
mean validation score over seeds, and only the chosen trials open the test split.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from tljax import config as schema
from tljax.config import Config
from tljax.errors import TrainingStopped
from tljax.report import tables
from tljax.run import replica_groups
from tljax.run.recipes import run_recipes
from tljax.run.train import Result, train_replicas
from tljax.run.workdir import WorkDir, config_hash

TUNED = ("optim", "train", "augment")


@dataclasses.dataclass(frozen=True)
class Trial:
    """One run of a sweep.

    Attributes:
      settings: {dotted field: value} of the swept fields, and {label: name} of settings that belong together.
      config: with these settings.
    """

    settings: dict
    config: Config

    def key(self, fields: Iterable[str]) -> str:
        """Return the settings of some fields as text, to group trials by."""
        return ",".join(f"{field}={self.settings[field]}" for field in fields)


def expand_grid(config: Config) -> list[Trial]:
    """Return a trial for every combination of the swept fields, validated, with its own folder in WORKDIR/trials."""
    trials = []
    names = tables.headers(list(config.sweep))
    for values in itertools.product(*config.sweep.values()):
        settings = dict(zip(config.sweep, values, strict=True))
        changes = {}
        for label, value in settings.items():
            named = config.sweep[label]
            changes |= named[value] if isinstance(named, Mapping) else {label: value}
        name = ",".join(f"{k}={v}" for k, v in zip(names, values, strict=True)).replace("/", "_")
        workdir = str(config.folder / "trials" / name)
        trials.append(Trial(settings, schema.override(config, {**changes, "sweep": {}, "workdir": workdir})))
    return trials


def run(config: Config, console: Console) -> dict:
    """Run a sweep, or resume it, and write and return its result.json.

    Args:
      config: with a sweep.
      console: for one line per trial and the table.

    Returns:
      `rows` of the comparison, `tuned` fields, all `trials` with their scores and folders, and `config_digest`.

    Raises:
      UserError: invalid input, found before anything is written.
      TrainingStopped: a chosen trial diverged.
    """
    root = config.folder
    trials = expand_grid(config)
    # Prepare one seed of every setting: an error in any of them is raised before the first one starts.
    configs = run_recipes([trial.config for trial in drop_seeds(trials).values()], root.parent, None)
    for group in _group_configs(configs):
        for _ in replica_groups.plan_groups([configs[i] for i in group]):
            pass
    with WorkDir.create(config, {}) as workdir:
        workdir.rename_old_trials()
        configs = run_recipes([trial.config for trial in trials], root.parent, console)
        trials = [dataclasses.replace(t, config=c) for t, c in zip(trials, configs, strict=True)]
        tuned = [name for name in config.sweep if name.split(".")[0] in TUNED and "." in name]
        results, chosen = _train_and_choose(trials, tuned, console)
        summary = _summarize(trials, results, chosen, tuned, root)
        summary["config_digest"] = config_hash(config)
        workdir.write("result.json", summary)
        _write_report(root, summary, figures=config.report.figures)
    console.print(tables.rich_table(summary["rows"]))
    console.print(f"Report: {root / 'report.md'}", highlight=False, markup=False, soft_wrap=True)
    return summary


def _train_and_choose(trials: list[Trial], tuned: list[str], console: Console) -> tuple[list[Result], Sequence[int]]:
    """Train all trials and evaluate the chosen ones on the test split; return the results and the chosen indices."""
    results = _run_trials(trials, console, open_test=not tuned)
    chosen: Sequence[int] = range(len(trials))
    if tuned:
        chosen = choose_settings(trials, results, tuned)
        tested = _run_trials([trials[i] for i in chosen], console, open_test=True)
        for i, result in zip(chosen, tested, strict=True):
            results[i] = result
    for result in (results[i] for i in sorted(chosen)):
        if isinstance(result, TrainingStopped):
            raise result
    return results, chosen


def _summarize(
    trials: list[Trial], results: list[Result], chosen: Sequence[int], tuned: list[str], root: Path
) -> dict[str, Any]:
    """Return the entries of a sweep's result.json."""
    return {
        "rows": tables.summarize_trials([{"settings": trials[i].settings, "result": results[i]} for i in chosen]),
        "tuned": tuned,
        "trials": [
            {
                "settings": trial.settings,
                "workdir": str(trial.config.folder.relative_to(root)),
                "valid": _score(result, "valid"),
                "test": _score(result, "test"),
            }
            for trial, result in zip(trials, results, strict=True)
        ],
    }


def _score(result: Result, split: str) -> float | None:
    """Return the score on a split, or None if the trial diverged or was not evaluated on it."""
    if isinstance(result, TrainingStopped) or split not in result:
        return None
    return tables.selection_score(result, split)


def drop_seeds(trials: list[Trial]) -> dict[str, Trial]:
    """Return the first trial of every combination of settings without the seed, {settings as text: trial}."""
    first: dict[str, Trial] = {}
    for trial in trials:
        first.setdefault(trial.key(field for field in trial.settings if field != "seed"), trial)
    return first


def choose_settings(trials: list[Trial], results: list[Result], tuned: list[str]) -> list[int]:
    """Return the indices of the trials whose tuned settings have the best mean validation score over seeds.

    One combination of tuned settings is chosen for each combination of compared settings; of equal ones, the first.
    """
    groups: dict[str, dict[str, list[int]]] = {}
    compared = [field for field in trials[0].settings if field not in tuned and field != "seed"]
    for i, trial in enumerate(trials):
        groups.setdefault(trial.key(compared), {}).setdefault(trial.key(tuned), []).append(i)

    def mean(indices: list[int]) -> float:
        finished = [r for r in (results[i] for i in indices) if not isinstance(r, TrainingStopped)]
        if len(finished) < len(indices):
            return -1.0  # diverged: worse than any score
        return float(np.mean([tables.selection_score(result, "valid") for result in finished]))

    return [i for group in groups.values() for i in max(group.values(), key=mean)]


def _run_trials(trials: list[Trial], console: Console, *, open_test: bool) -> list[Result]:
    """Train trials, in groups that are one program, and return the results in the order of the trials."""
    results: list = [None] * len(trials)
    done = 0
    for indices in _group_configs([trial.config for trial in trials]):
        for group in replica_groups.plan_groups([trials[i].config for i in indices]):
            outcomes = train_replicas([run for _, run in group], console, open_test=open_test, lines=False)
            for (position, _), result in zip(group, outcomes, strict=True):
                index = indices[position]
                results[index] = result
                done += 1
                _print_result(trials[index], result, f"[{done}/{len(trials)}]", console)
    return results


def _group_configs(configs: Sequence[Config]) -> list[list[int]]:
    """Return the indices of the configs in groups of one `replica_groups.group_key`."""
    groups: dict[str, list[int]] = {}
    for index, config in enumerate(configs):
        groups.setdefault(replica_groups.group_key(config), []).append(index)
    return list(groups.values())


def _print_result(trial: Trial, result: Result, progress: str, console: Console) -> None:
    name = ", ".join(f"{tables.short_field_name(k)} {v}" for k, v in trial.settings.items())
    if isinstance(result, TrainingStopped):
        text = str(result)
    else:
        test = f", test {100 * tables.selection_score(result, 'test'):.1f} %" if "test" in result else ""
        valid = f"validation {100 * tables.selection_score(result, 'valid'):.1f} %"
        text = f"{valid}{test}, {result['seconds']:.1f} s"
    console.print(f"{progress} {name}: {text}", highlight=False, markup=False)


def _write_report(root: Path, summary: dict, *, figures: bool) -> None:
    """Write report.md, and the figures."""
    if figures:
        _draw_figures(root / "figures", summary)
    selection = "Every run chose its best epoch on validation and then opened the test split, once."
    if summary["tuned"]:
        selection = (
            f"{', '.join(summary['tuned'])} chosen by the mean validation score over seeds; only the chosen runs "
            "opened the test split, once each."
        )
    lines = [f"# Comparison: {root.name}", "", tables.markdown_table(summary["rows"]), selection, ""]
    if figures:
        lines += ["![Validation and test accuracy](figures/sweep.png)", ""]
        if (root / "figures" / "heat_map.png").exists():
            lines += ["![Validation accuracy over the tuned fields](figures/heat_map.png)", ""]
    lines += ["| run | validation % | test % |", "|---|---:|---:|"]
    for trial in summary["trials"]:
        test = tables.MISSING if trial["test"] is None else f"{100 * trial['test']:.2f}"
        valid = "diverged" if trial["valid"] is None else f"{100 * trial['valid']:.2f}"
        name = tables.escape(Path(trial["workdir"]).name)
        link = name if trial["test"] is None else f"[{name}](<{trial['workdir']}/report.md>)"
        lines.append(f"| {link} | {valid} | {test} |")
    (root / "report.md").write_text("\n".join(lines) + "\n")


def _draw_figures(folder: Path, summary: dict) -> None:
    from tljax.report import figures, heat_map  # Matplotlib is slow to import

    figures.draw_sweep(summary["rows"], folder / "sweep.png")
    heat_map.draw_heat_map(summary["trials"], summary["tuned"], folder / "heat_map.png")
