"""The command line of run.py."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from tljax import config as schema
from tljax.config import Config
from tljax.config.renamed import renamed_hint
from tljax.errors import TljaxError, UserError, did_you_mean
from tljax.run.config_files import CONFIG_ERRORS, one_line, run_name
from tljax.storage.cache_dir import enable_compilation_cache

USAGE = """Transfer learning for vision in JAX.

  python run.py --config=configs/quickstart.py                     train, or resume the run
  python run.py --config=configs/NAME.py --config.optim.lr=0.01    with a changed field
  python run.py --config=configs/NAME.py --mode=plan               what each phase trains, and what it costs
  python run.py --workdir=runs/NAME --mode=evaluate                evaluate a finished run again
  python run.py --workdir=runs/NAME --mode=predict --input=IMAGE_OR_FOLDER
  python run.py --workdir=runs/NAME --mode=report                  redraw the figures and the report of a run
  python run.py --config=configs/NAME.py --mode=features           write the features of the frozen network
  python run.py --config=configs/NAME.py --mode=probe              fit and evaluate classifiers on these features

features and probe use the best model of the run in --workdir if it is finished, else the config's source weights.
Every field of a config: python -m tljax.config
"""

# Modules that import JAX or Matplotlib are imported by the mode that needs them: `--help` and errors are quick.


def main(argv: list[str]) -> int:
    """Run a command line and return the exit code: 0, 1 training stopped, 2 invalid input, 130 interrupted."""
    values = define_flags(argv)
    if any(a in ("--help", "-h", "-help") for a in argv[1:]):
        print(USAGE)
        print(values.get_help(include_special_flags=False))
        return 0
    try:
        _run_mode(values, argv)
    except TljaxError as error:
        print(f"{error.label}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("stopped before training started.", file=sys.stderr)
        return 130
    return 0


def define_flags(argv: list[str]) -> flags.FlagValues:
    """Return the flags of run.py, not yet parsed; `argv` determines which config fields are overridden."""
    values = flags.FlagValues()
    config_flags.DEFINE_config_file(
        "config", None, "Config file, e.g. configs/quickstart.py", flag_values=values, sys_argv=argv
    )
    flags.DEFINE_string("workdir", None, "Folder of the run; default: runs/NAME of the config", flag_values=values)
    flags.DEFINE_string("mode", "train", f"One of {', '.join(MODES)}", flag_values=values)
    flags.DEFINE_string("input", None, "mode=predict: an image, or a folder of images", flag_values=values)
    flags.DEFINE_boolean("help", False, "Shows this help", short_name="h", flag_values=values)
    return values


def _run_mode(values: flags.FlagValues, argv: list[str]) -> None:
    if arguments := _parse_flags(values, argv):
        raise UserError(f'Unexpected argument "{arguments[0]}": flags look like --config=configs/NAME.py; see --help.')
    if values.mode not in MODES:
        raise UserError(f'There is no --mode "{values.mode}"{did_you_mean(values.mode, MODES)}')
    if (values.input is not None) != (values.mode == "predict"):
        raise UserError("--mode=predict needs --input=IMAGE_OR_FOLDER, and no other mode takes --input.")
    from rich.console import Console

    MODES[values.mode](values, Console())


def _parse_flags(values: flags.FlagValues, argv: list[str]) -> list[str]:
    """Parse `argv` into `values` and return the positional arguments."""
    for argument in argv[1:]:
        name = argument.lstrip("-").partition("=")[0]
        field = name.removeprefix("config.")
        if name.startswith("config.") and field not in schema.field_names():
            hint = renamed_hint(field) or did_you_mean(field, schema.field_names())
            raise UserError(f"There is no field --{name}{hint}")
    try:
        return values(argv)[1:]
    except flags.UnrecognizedFlagError as error:
        names = ("config", "workdir", "mode", "input", "help")
        raise UserError(f"There is no flag --{error.flagname}{did_you_mean(error.flagname, names)}") from error
    except (flags.Error, *CONFIG_ERRORS) as error:
        raise UserError(one_line(error)) from error


def _train(values: flags.FlagValues, console) -> None:
    config = _load_config(values)
    enable_compilation_cache()
    if config.sweep:
        from tljax.run import sweep

        sweep.run(config, console)
    else:
        from tljax.run.evaluate import print_metrics
        from tljax.run.experiment import prepare
        from tljax.run.train import train
        from tljax.tasks import metrics_of

        (config,) = _train_recipes([config], config.folder.parent, console, prepare)
        result = train(config, console)
        print_metrics(result, metrics_of(config), config.folder, console)
    _print_next_steps(config, console)


def _plan(values: flags.FlagValues, console) -> None:
    from tljax.run import plan

    config = _load_config(values)
    enable_compilation_cache()
    plan.print_plan(config, console)


def _evaluate(values: flags.FlagValues, console) -> None:
    from tljax.run import evaluate

    config = _load_run_config(values)
    enable_compilation_cache()
    evaluate.evaluate(config, console)


def _predict(values: flags.FlagValues, console) -> None:
    from tljax.run import predict

    config = _load_run_config(values)
    enable_compilation_cache()
    predict.write_predictions(config, Path(values.input), console)


def _features(values: flags.FlagValues, console) -> None:
    from tljax.run import features

    _, configs = _feature_configs(values, console)
    for config in configs:
        features.write(config, console)


def _probe(values: flags.FlagValues, console) -> None:
    from tljax.run import probe

    workdir, configs = _feature_configs(values, console)
    probe.run(configs, workdir, console)


def _report(values: flags.FlagValues, console) -> None:
    from tljax.report import markdown

    path = markdown.write_report(_load_run_config(values).folder)
    console.print(f"Report: {path}", highlight=False, markup=False, soft_wrap=True)


MODES: dict[str, Callable] = {
    "train": _train,
    "plan": _plan,
    "evaluate": _evaluate,
    "predict": _predict,
    "features": _features,
    "probe": _probe,
    "report": _report,
}


def _feature_configs(values: flags.FlagValues, console) -> tuple[Path, list[Config]]:
    """Return the work directory and the configs, one per seed, of --mode=features or --mode=probe."""
    from tljax.run import features

    of_run = values.config is None and values.workdir
    config = _load_run_config(values) if of_run else _load_config(values)
    enable_compilation_cache()
    configs = features.expand_seeds(config, values.mode)
    return config.folder, _train_recipes(configs, config.folder.parent, console, features.prepare_extraction)


def _train_recipes(configs: list[Config], root: Path, console, check: Callable[[Config], object]) -> list[Config]:
    """Train the recipes that configs take weights from, and return the configs with those weights.

    Args:
      configs: with or without recipes.
      root: folder of the recipes' work directories.
      console: for the logs.
      check: raises UserError for an invalid config; called before any recipe is trained.
    """
    from tljax.run.recipes import recipes_of, run_recipes

    for config in run_recipes([c for c in configs if recipes_of(c)], root, None):
        check(config)
    return run_recipes(configs, root, console)


def _load_config(values: flags.FlagValues) -> Config:
    """Return the config of --config with the overridden fields and its work directory."""
    if values.config is None:
        raise UserError("--config=configs/NAME.py is missing; --help lists all flags.")
    # A config may take an argument, as configs/NAME.py:ARGUMENT.
    flag: Any = values["config"]
    file = flag.config_filename
    path = file.partition(":")[0]
    if not Path(path).is_file():
        raise UserError(f"There is no config file {path}{did_you_mean(path, map(str, Path('configs').glob('*.py')))}")
    try:
        config = schema.parse(values.config.copy_and_resolve_references())
    except CONFIG_ERRORS as error:
        raise UserError(f"{path}: {one_line(error)}") from error
    return dataclasses.replace(config, workdir=values.workdir or config.workdir or f"runs/{run_name(file)}")


def _load_run_config(values: flags.FlagValues) -> Config:
    """Return the config of a finished run, from its work directory."""
    workdir = values.workdir or (_load_config(values).workdir if values.config is not None else None)
    if workdir is None:
        raise UserError(f"--mode={values.mode} needs --workdir, the folder of a finished run.")
    from tljax.run.workdir import WorkDir

    folder = WorkDir(workdir)
    result = folder.read_result()
    if result is None:
        raise UserError(f"{workdir} holds no finished run: it has no result.json.")
    if "rows" in result:
        trial = f"{workdir}/{result['trials'][0]['workdir']}"
        raise UserError(f"{workdir} holds a sweep: choose one of its runs, such as --workdir={trial}.")
    return dataclasses.replace(folder.read_config(), workdir=workdir)


def _print_next_steps(config: Config, console) -> None:
    if config.report.next_steps:
        console.print("\nWhat to try next:")
        for line in config.report.next_steps:
            console.print(f"  {line}", highlight=False, markup=False, soft_wrap=True)
