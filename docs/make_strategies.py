"""Writes strategies.md, next to this file: every strategy, what learns, what it costs, and what it reached.

Takes the folder of sweeps over strategies, which are finished first if they are not, and probes the features of
the first one's source network on the same pictures:

    python docs/make_strategies.py runs
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from rich.console import Console

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from tljax import config as schema  # noqa: E402
from tljax.config import Config  # noqa: E402
from tljax.errors import UserError  # noqa: E402
from tljax.losses import LOSSES, REQUIREMENTS  # noqa: E402
from tljax.report import phase_diagram  # noqa: E402
from tljax.report.markdown import humanise_bytes  # noqa: E402
from tljax.report.tables import MISSING, mean_interval, percent  # noqa: E402
from tljax.run import features, probe, sweep  # noqa: E402
from tljax.run.config_files import load_config_file  # noqa: E402
from tljax.run.experiment import prepare  # noqa: E402
from tljax.run.phase_rows import phase_rows  # noqa: E402
from tljax.run.plan import phase_cost  # noqa: E402
from tljax.run.recipes import run_recipes  # noqa: E402
from tljax.run.workdir import config_hash  # noqa: E402
from tljax.storage.cache_dir import enable_compilation_cache  # noqa: E402
from tljax.strategies import PRESETS  # noqa: E402

# The first is the page's own; of the others it has the table alone.
EXPERIMENTS = tuple(f"experiments/{n}.py" for n in ("strategies_fashion", "strategies_digits", "vgg16_few_labels"))
Accuracies = dict[tuple[str, int], dict[int, float]]  # of (method, labels of each class): test accuracy by seed
TEACHERS, UNLABELLED = {"strategy.teachers": ("workdir:RUN",)}, {"data.unlabelled": -1}
# What a config must set besides the name. Of teachers and unlabelled pictures the experiment has its own.
FIELDS = {
    "layers": {"strategy.layers": ("stage3/.*", "head/.*")},
    **dict.fromkeys(("distillation", "attention_transfer", "fitnets"), TEACHERS),
    **dict.fromkeys(("pseudo_label", "fixmatch", "mean_teacher"), UNLABELLED),
}


def main() -> None:
    """Measures what is not measured yet, draws, and writes the page."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("runs", type=Path, help="folder of the sweeps' work directories")
    flags.add_argument("--to", type=Path, default=HERE, help="folder of the page")
    given = flags.parse_args()
    environment = Environment(loader=FileSystemLoader(HERE), undefined=StrictUndefined, trim_blocks=True)
    text = (HERE / "strategies.md.in").read_text()
    if missing := [name for name in PRESETS if f'row("{name}", ' not in text]:
        raise UserError(f"strategies.md.in has no row for {', '.join(missing)}.")
    enable_compilation_cache()
    console = Console(stderr=True)
    sweeps = [measurement(name, given.runs, console) for name in EXPERIMENTS]
    config, accuracies = sweeps[0]["config"], sweeps[0]["accuracies"]
    accuracies |= probed(config, console)
    costs = {name: described(name, config, given.to / "strategies") for name in PRESETS}
    phase_diagram.draw_legend(given.to / "strategies" / "key.png")
    page = environment.get_template("strategies.md.in").render(
        sweeps=sweeps,
        config=config,
        row=lambda name, *facts: f"| {lines_of(name)} | {' | '.join((facts[0], costs[name], *facts[1:]))} |",
        pictures=pictures,
        results=results,
        verdicts=verdicts,
        left_out=[name for name in PRESETS if not any(name == method for method, _ in accuracies)],
        objectives=[(o.name, sorted(o.requires), summary(o.function.__doc__)) for o in LOSSES.values()],
        needs=REQUIREMENTS,
        own=(HERE / "batch_spectral_shrinkage.py").read_text(),
    )
    if unseen := [name for name in PRESETS if f"(strategies/{name}.png)" not in page]:
        raise UserError(f"strategies.md.in shows no picture of {', '.join(unseen)}.")
    (given.to / "strategies.md").write_text(page)


def measurement(name: str, runs: Path, console: Console) -> dict:
    """A sweep, finished first if it is not: its config, what ran, and its accuracies."""
    workdir = runs / Path(name).stem
    config = dataclasses.replace(load_config_file(name), workdir=str(workdir))
    result = finished(config, console)
    return {"file": name, "config": config, "run": about(result, workdir), "accuracies": measured(result)}


def finished(config: Config, console: Console) -> dict:
    """The sweep's result.json, of this very config."""
    path = Path(config.workdir) / "result.json"
    result = json.loads(path.read_text()) if path.is_file() else sweep.run(config, console)
    if result["config_digest"] != config_hash(config):
        raise UserError(f"{path} is the result of another config.")
    return result


def measured(result: dict) -> Accuracies:
    """The sweep's cells that opened the test split."""
    found: Accuracies = {}
    for cell in result["cells"]:
        settings = cell["settings"]
        if cell["test"] is not None:
            key = settings["strategy.name"], settings["data.labels_per_class"]
            found.setdefault(key, {})[settings["seed"]] = cell["test"]
    return found


def probed(config: Config, console: Console) -> Accuracies:
    """The probes of the source's last map, for the sweep's budgets and seeds."""
    found: Accuracies = {}
    for budget in config.sweep["data.labels_per_class"]:
        settings = {"strategy.name": "feature_extraction", "data.labels_per_class": budget}
        settings |= {"workdir": f"{config.workdir}/probes/{budget}", "sweep": {"seed": config.sweep["seed"]}}
        runs = features.runs(schema.override(config, settings), "probe")
        runs = run_recipes(runs, Path(config.workdir).parent, console)
        if not all(is_probed(run) for run in runs):
            probe.run(runs, settings["workdir"], console)
        for run in runs:
            probes = json.loads((Path(run.workdir) / "probe.json").read_text())["probes"]
            for name, row in probes.items():
                found.setdefault((f"probe: {name}", budget), {})[run.seed] = row["test"]["accuracy"]
    return found


def is_probed(run: Config) -> bool:
    """Whether a run's probes of this very config are there."""
    path = Path(run.workdir) / "probe.json"
    return path.is_file() and json.loads(path.read_text())["about"]["config_digest"] == config_hash(run)


def described(name: str, config: Config, folder: Path) -> str:
    """Draws a strategy's blocks, and says what it costs: step over forward pass, optimizer state."""
    first = {field: values[0] for field, values in config.sweep.items()}
    own = {k: v for k, v in FIELDS.get(name, {}).items() if k not in TEACHERS | UNLABELLED}
    single = schema.override(config, {**first, "sweep": {}, "strategy.name": name, **own})
    prepared = prepare(*run_recipes([single], Path(config.workdir).parent, None))
    rows = phase_rows(prepared.plans, prepared.predictor.model, prepared.config.optim.lr)
    phase_diagram.draw_phase_diagram(phase_diagram.from_dicts(rows), folder / f"{name}.png")
    costs = [phase_cost(prepared, plan) for plan in prepared.plans]
    steps = [plan.steps for plan in prepared.plans]
    flops = sum(c.step_flops * n for c, n in zip(costs, steps, strict=True)) / sum(steps)
    return f"{flops / costs[0].forward_flops:.1f} | {humanise_bytes(max(c.optimizer_bytes for c in costs))}"


def lines_of(name: str) -> str:
    """What a config says to have a strategy, as a table's cell."""
    fields = {"strategy.name": name, **FIELDS.get(name, {})}
    literals = {k: json.dumps(v) if isinstance(v, str) else repr(v).replace("'", '"') for k, v in fields.items()}
    return "<br>".join(f"`c.{field} = {literal}`" for field, literal in literals.items())


def pictures(*names: str) -> str:
    """The pictures of some strategies, one under another."""
    return "\n\n".join(f"`{name}`:\n\n![what learns under {name}](strategies/{name}.png)" for name in names)


def results(accuracies: Accuracies) -> str:
    """Test accuracies of all methods, and their differences from `full` on the same labelled pictures."""
    budgets = sorted({budget for _, budget in accuracies})
    header = [f"{budget} labels: test % | minus `full`" for budget in budgets]
    lines = [f"| method | {' | '.join(header)} |", "|---" + "|---:" * 2 * len(budgets) + "|"]
    known = [*PRESETS, *sorted({method for method, _ in accuracies} - PRESETS.keys())]
    for method in known:
        if not any((method, budget) in accuracies for budget in budgets):
            continue
        cells = []
        for budget in budgets:
            seeds = accuracies.get((method, budget))
            cells.append(percent(mean_interval(list(seeds.values()))) if seeds else MISSING)
            cells.append(MISSING if method == "full" else shown(paired(accuracies, method, "full", budget)))
        lines.append(f"| {method if ':' in method else f'`{method}`'} | {' | '.join(cells)} |")
    return "\n".join(lines)


def paired(accuracies: Accuracies, one: str, other: str, budget: int) -> tuple[float, float | None] | None:
    """Mean and half-width of the 95 % interval of the differences, seed by seed; None without seeds in common."""
    a, b = (accuracies.get((method, budget), {}) for method in (one, other))
    differences = [a[seed] - b[seed] for seed in a if seed in b]
    return mean_interval(differences) if differences else None


def clear(difference: tuple[float, float | None] | None) -> int:
    """1 where the interval is above zero, -1 where it is below, else 0."""
    if difference is None or difference[1] is None or abs(difference[0]) <= difference[1]:
        return 0
    return 1 if difference[0] > 0 else -1


def shown(difference: tuple[float, float | None] | None) -> str:
    """A difference in points, in bold where zero is outside its interval."""
    if difference is None:
        return MISSING
    text = f"{'+' if difference[0] >= 0 else ''}{percent(difference)}"
    return f"**{text}**" if clear(difference) else text


def verdicts(accuracies: Accuracies) -> list[dict]:
    """By budget and baseline, the methods that are clearly better than it, and clearly worse."""
    found = []
    for budget in sorted({budget for _, budget in accuracies}):
        for baseline in ("full", "scratch"):
            signs = {
                (m if ":" in m else f"`{m}`"): clear(paired(accuracies, m, baseline, budget))
                for m, b in accuracies
                if b == budget and m != baseline
            }
            groups = {word: [m for m, s in signs.items() if s == sign] for word, sign in (("better", 1), ("worse", -1))}
            found.append({"budget": budget, "baseline": baseline, **groups})
    return found


def about(result: dict, workdir: Path) -> dict:
    """What ran, and on what."""
    runs = [json.loads((workdir / cell["workdir"] / "result.json").read_text()) for cell in result["cells"]]
    data = runs[0]["data"]
    return {
        "versions": runs[0]["versions"],
        "device": runs[0]["devices"][0].rstrip("0123456789_:"),
        "hours": sum(run["seconds"] for run in runs) / 3600,
        "runs": len(runs),
        "seeds": len({run["seed"] for run in runs}),
        "valid": data["valid"]["size"],
        "test": data["test"]["size"],
        "classes": data["classes"],
    }


def summary(docstring: str) -> str:
    """A docstring's first line, without its full stop."""
    return docstring.strip().splitlines()[0].rstrip(".")


if __name__ == "__main__":
    main()
