"""Write strategies.md, next to this file: every strategy with its phases, cost and measured accuracy.

Reads the sweeps over strategies in a folder, running those that are not finished, and fits probes on the features of
the first sweep's source network for the same images:

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
from tljax.report.markdown import format_bytes  # noqa: E402
from tljax.report.tables import MISSING, mean_interval, percent  # noqa: E402
from tljax.run import features, probe, sweep  # noqa: E402
from tljax.run.config_files import load_config_file  # noqa: E402
from tljax.run.experiment import prepare  # noqa: E402
from tljax.run.phase_rows import phase_rows  # noqa: E402
from tljax.run.plan import phase_cost  # noqa: E402
from tljax.run.recipes import run_recipes  # noqa: E402
from tljax.run.workdir import WorkDir, config_hash  # noqa: E402
from tljax.storage.cache_dir import enable_compilation_cache  # noqa: E402
from tljax.strategies import PRESETS  # noqa: E402

# The first is the main measurement of the page; for the others the page has only the tables.
EXPERIMENTS = tuple(f"experiments/{n}.py" for n in ("strategies_fashion", "strategies_digits", "vgg16_few_labels"))
Accuracies = dict[tuple[str, int], dict[int, float]]  # {(method, labels per class): {seed: test accuracy}}
TEACHERS = {"strategy.teachers": ("workdir:RUN",)}
UNLABELLED = {"data.unlabelled": -1}
# Config fields that a strategy requires besides its name. The experiment sets its own teachers and unlabeled images.
FIELDS = {
    "layers": {"strategy.layers": ("stage3/.*", "head/.*")},
    **dict.fromkeys(("distillation", "attention_transfer", "fitnets"), TEACHERS),
    **dict.fromkeys(("pseudo_label", "fixmatch", "mean_teacher"), UNLABELLED),
}


def main() -> None:
    """Run the missing measurements, draw the diagrams, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, help="folder of the sweeps' work directories")
    parser.add_argument("--to", type=Path, default=HERE, help="folder of the page")
    args = parser.parse_args()
    environment = Environment(loader=FileSystemLoader(HERE), undefined=StrictUndefined, trim_blocks=True)
    template = (HERE / "strategies.md.in").read_text()
    if missing := [name for name in PRESETS if f'row("{name}", ' not in template]:
        raise UserError(f"strategies.md.in has no row for {', '.join(missing)}.")
    enable_compilation_cache()
    console = Console(stderr=True)
    sweeps = [load_sweep(name, args.runs, console) for name in EXPERIMENTS]
    config = sweeps[0]["config"]
    accuracies = sweeps[0]["accuracies"]
    accuracies |= probe_accuracies(config, console)
    costs = {name: draw_and_count(name, config, args.to / "strategies") for name in PRESETS}
    phase_diagram.draw_legend(args.to / "strategies" / "key.png")
    page = environment.get_template("strategies.md.in").render(
        sweeps=sweeps,
        config=config,
        row=lambda name, *cells: f"| {config_lines(name)} | {' | '.join((cells[0], costs[name], *cells[1:]))} |",
        diagrams=diagrams,
        results_table=results_table,
        comparisons=comparisons,
        left_out=[name for name in PRESETS if not any(name == method for method, _ in accuracies)],
        losses=[(loss.name, sorted(loss.requires), summary(loss.function.__doc__)) for loss in LOSSES.values()],
        requirements=REQUIREMENTS,
        example=(HERE / "batch_spectral_shrinkage.py").read_text(),
    )
    if missing := [name for name in PRESETS if f"(strategies/{name}.png)" not in page]:
        raise UserError(f"strategies.md.in has no diagram of {', '.join(missing)}.")
    (args.to / "strategies.md").write_text(page)


def load_sweep(name: str, runs: Path, console: Console) -> dict:
    """Return the config, the facts and the accuracies of an experiment's sweep, running it first if necessary."""
    workdir = runs / Path(name).stem
    config = dataclasses.replace(load_config_file(name), workdir=str(workdir))
    result = sweep_result(config, console)
    return {"file": name, "config": config, "run": describe_sweep(result, workdir), "accuracies": accuracies_of(result)}


def sweep_result(config: Config, console: Console) -> dict:
    """Return the sweep's result.json, running the sweep first if necessary.

    Raises:
      UserError: the result belongs to another config.
    """
    result = WorkDir(config.workdir).read_result() or sweep.run(config, console)
    if result["config_digest"] != config_hash(config):
        raise UserError(f"{config.workdir}/result.json is the result of another config.")
    return result


def accuracies_of(result: dict) -> Accuracies:
    """Return the accuracies of the sweep's trials that were evaluated on the test split."""
    accuracies: Accuracies = {}
    for trial in result["trials"]:
        settings = trial["settings"]
        if trial["test"] is not None:
            key = settings["strategy.name"], settings["data.labels_per_class"]
            accuracies.setdefault(key, {})[settings["seed"]] = trial["test"]
    return accuracies


def probe_accuracies(config: Config, console: Console) -> Accuracies:
    """Return the accuracies of probes on the source's last feature map, for the sweep's budgets and seeds."""
    accuracies: Accuracies = {}
    for budget in config.sweep["data.labels_per_class"]:
        settings = {"strategy.name": "feature_extraction", "data.labels_per_class": budget}
        settings |= {"workdir": f"{config.workdir}/probes/{budget}", "sweep": {"seed": config.sweep["seed"]}}
        runs = features.expand_seeds(schema.override(config, settings), "probe")
        runs = run_recipes(runs, Path(config.workdir).parent, console)
        if not all(has_probes(run) for run in runs):
            probe.run(runs, settings["workdir"], console)
        for run in runs:
            probes = json.loads((Path(run.workdir) / "probe.json").read_text())["probes"]
            for name, row in probes.items():
                accuracies.setdefault((f"probe: {name}", budget), {})[run.seed] = row["test"]["accuracy"]
    return accuracies


def has_probes(run: Config) -> bool:
    """Return whether probe.json of this config exists."""
    path = Path(run.workdir) / "probe.json"
    return path.is_file() and json.loads(path.read_text())["about"]["config_digest"] == config_hash(run)


def draw_and_count(name: str, config: Config, folder: Path) -> str:
    """Draw a strategy's phase diagram and return its cost as two table cells.

    The cells are FLOPs of a step over those of a forward pass, and the size of the optimizer state.
    """
    first_values = {field: values[0] for field, values in config.sweep.items()}
    fields = {k: v for k, v in FIELDS.get(name, {}).items() if k not in TEACHERS | UNLABELLED}
    single = schema.override(config, {**first_values, "sweep": {}, "strategy.name": name, **fields})
    experiment = prepare(*run_recipes([single], Path(config.workdir).parent, None))
    rows = phase_rows(experiment.plans, experiment.predictor)
    phase_diagram.draw_phase_diagram(phase_diagram.from_dicts(rows), folder / f"{name}.png")
    costs = [phase_cost(experiment, plan) for plan in experiment.plans]
    steps = [plan.steps for plan in experiment.plans]
    flops = sum(c.step_flops * n for c, n in zip(costs, steps, strict=True)) / sum(steps)
    return f"{flops / costs[0].forward_flops:.1f} | {format_bytes(max(c.optimizer_bytes for c in costs))}"


def config_lines(name: str) -> str:
    """Return the config lines that select a strategy, as a table cell."""
    fields = {"strategy.name": name, **FIELDS.get(name, {})}
    literals = {k: json.dumps(v) if isinstance(v, str) else repr(v).replace("'", '"') for k, v in fields.items()}
    return "<br>".join(f"`c.{field} = {literal}`" for field, literal in literals.items())


def diagrams(*names: str) -> str:
    """Return the Markdown of the phase diagrams of some strategies, one below the other."""
    return "\n\n".join(f"`{name}`:\n\n![phases of {name}](strategies/{name}.png)" for name in names)


def results_table(accuracies: Accuracies) -> str:
    """Return a table of test accuracies and their differences from `full`, paired by seed."""
    budgets = sorted({budget for _, budget in accuracies})
    header = [f"{budget} labels: test % | minus `full`" for budget in budgets]
    lines = [f"| method | {' | '.join(header)} |", "|---" + "|---:" * 2 * len(budgets) + "|"]
    methods = [*PRESETS, *sorted({method for method, _ in accuracies} - PRESETS.keys())]
    for method in methods:
        if not any((method, budget) in accuracies for budget in budgets):
            continue
        cells = []
        for budget in budgets:
            seeds = accuracies.get((method, budget))
            difference = paired_difference(accuracies, method, "full", budget)
            cells.append(percent(mean_interval(list(seeds.values()))) if seeds else MISSING)
            cells.append(MISSING if method == "full" else format_difference(difference))
        lines.append(f"| {method if ':' in method else f'`{method}`'} | {' | '.join(cells)} |")
    return "\n".join(lines)


def paired_difference(
    accuracies: Accuracies, method: str, baseline: str, budget: int
) -> tuple[float, float | None] | None:
    """Return mean and half-width of the 95 % interval of the differences by seed; None without common seeds."""
    a = accuracies.get((method, budget), {})
    b = accuracies.get((baseline, budget), {})
    differences = [a[seed] - b[seed] for seed in a if seed in b]
    return mean_interval(differences) if differences else None


def significant_sign(difference: tuple[float, float | None] | None) -> int:
    """Return 1 if the interval is above zero, -1 if it is below, else 0."""
    if difference is None or difference[1] is None or abs(difference[0]) <= difference[1]:
        return 0
    return 1 if difference[0] > 0 else -1


def format_difference(difference: tuple[float, float | None] | None) -> str:
    """Return a difference in percentage points, in bold if its interval excludes zero."""
    if difference is None:
        return MISSING
    text = f"{'+' if difference[0] >= 0 else ''}{percent(difference)}"
    return f"**{text}**" if significant_sign(difference) else text


def comparisons(accuracies: Accuracies) -> list[dict]:
    """Return, for every budget and baseline, the methods that are significantly better or worse."""
    rows = []
    for budget in sorted({budget for _, budget in accuracies}):
        for baseline in ("full", "scratch"):
            signs = {
                (m if ":" in m else f"`{m}`"): significant_sign(paired_difference(accuracies, m, baseline, budget))
                for m, b in accuracies
                if b == budget and m != baseline
            }
            groups = {word: [m for m, s in signs.items() if s == sign] for word, sign in (("better", 1), ("worse", -1))}
            rows.append({"budget": budget, "baseline": baseline, **groups})
    return rows


def describe_sweep(result: dict, workdir: Path) -> dict:
    """Return software versions, device, hours, and sizes of a sweep."""
    runs = [json.loads((workdir / trial["workdir"] / "result.json").read_text()) for trial in result["trials"]]
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
    """Return a docstring's first line without its full stop."""
    return docstring.strip().splitlines()[0].rstrip(".")


if __name__ == "__main__":
    main()
