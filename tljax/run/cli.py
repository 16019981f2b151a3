"""The command line behind run.py."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from tljax import config as schema
from tljax.config import Config
from tljax.config.renamed import renamed_hint
from tljax.errors import TljaxError, UserError, did_you_mean
from tljax.run.config_files import CONFIG_ERRORS, one_line, run_name
from tljax.storage.cache_dir import enable_compilation_cache

MODES = ("train", "plan", "evaluate", "predict", "features", "probe", "report")
USAGE = """Transfer learning in JAX.

  python run.py --config=configs/quickstart.py                     train, or go on where the run was
  python run.py --config=configs/NAME.py --config.optim.lr=0.01    with a field changed
  python run.py --config=configs/NAME.py --mode=plan               what would learn, and what it costs
  python run.py --workdir=runs/NAME --mode=evaluate                judge a finished run again
  python run.py --workdir=runs/NAME --mode=predict --input=PICTURE_OR_FOLDER
  python run.py --workdir=runs/NAME --mode=report                  draw its figures and report again
  python run.py --config=configs/NAME.py --mode=features           write what the network's stages make of the pictures
  python run.py --config=configs/NAME.py --mode=probe              judge ready classifiers on such features

features and probe take the best model of the run in --workdir when it is finished, else the config's source weights.
Every field of a config: python -m tljax.config
"""


def define_flags(argv: list[str]) -> flags.FlagValues:
    """The flags of run.py, in a set of their own; `argv` says which fields of the config are overridden."""
    values = flags.FlagValues()
    config_flags.DEFINE_config_file(
        "config", None, "Config file, e.g. configs/quickstart.py", flag_values=values, sys_argv=argv
    )
    flags.DEFINE_string("workdir", None, "Folder of the run; default: runs/NAME of the config", flag_values=values)
    flags.DEFINE_string("mode", "train", f"One of {', '.join(MODES)}", flag_values=values)
    flags.DEFINE_string("input", None, "mode=predict: a picture, or a folder of them", flag_values=values)
    flags.DEFINE_boolean("help", False, "Shows this help", short_name="h", flag_values=values)
    return values


def main(argv: list[str]) -> int:
    """Runs a command line; returns the exit code: 0, 1 stopped, 2 bad input, 130 interrupted."""
    values = define_flags(argv)
    if any(a in ("--help", "-h", "-help") for a in argv[1:]):
        print(USAGE)
        print(values.get_help(include_special_flags=False))
        return 0
    try:
        return _dispatch(values, argv)
    except TljaxError as error:
        print(f"{error.label}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("stopped: training had not begun.", file=sys.stderr)
        return 130


def _dispatch(values: flags.FlagValues, argv: list[str]) -> int:
    rest = _parse(values, argv)
    if rest:
        raise UserError(f'What is "{rest[0]}"? Flags look like --config=configs/NAME.py; --help shows them.')
    if values.mode not in MODES:
        raise UserError(f'There is no --mode "{values.mode}"{did_you_mean(values.mode, MODES)}')
    if (values.input is not None) != (values.mode == "predict"):
        raise UserError("--mode=predict and --input=PICTURE_OR_FOLDER go together.")
    from rich.console import Console

    console = Console()
    if values.mode == "report":
        from tljax.report import markdown

        path = markdown.write_report(_config_of_run(values).workdir)
        console.print(f"Report: {path}", highlight=False, markup=False, soft_wrap=True)
        return 0
    if values.mode in ("evaluate", "predict"):
        from tljax.run import evaluate, predict

        config = _config_of_run(values)
        enable_compilation_cache()
        if values.mode == "evaluate":
            evaluate.evaluate(config, console)
        else:
            predict.predict(config, Path(values.input), console)
        return 0
    if values.mode in ("features", "probe"):
        from tljax.run import features, probe

        config = _config_of_run(values) if values.config is None and values.workdir else _config(values)
        enable_compilation_cache()
        root, configs = Path(config.workdir).parent, features.runs(config, values.mode)
        configs = _with_weights(configs, root, console, features.check)
        if values.mode == "probe":
            probe.run(configs, config.workdir, console)
        else:
            for single in configs:
                features.write(single, console)
        return 0
    config = _config(values)
    enable_compilation_cache()
    if values.mode == "plan":
        from tljax.run import plan

        plan.show(config, console)
    elif config.sweep:
        from tljax.run import sweep

        sweep.run(config, console)
        _say_next(config, console)
    else:
        from tljax.run.evaluate import show
        from tljax.run.experiment import prepare
        from tljax.run.train import train
        from tljax.tasks import task_of

        (config,) = _with_weights([config], Path(config.workdir).parent, console, prepare)
        result = train(config, console)
        show(result, task_of(config), config.workdir, console)
        _say_next(config, console)
    return 0


def _with_weights(configs: list[Config], root: Path, console, check) -> list[Config]:
    """Makes the weights that recipes stand for; what is wrong behind a recipe, `check` says before it runs."""
    from tljax.run.recipes import recipes_of, run_recipes

    for config in run_recipes([c for c in configs if recipes_of(c)], root, None):
        check(config)
    return run_recipes(configs, root, console)


def _parse(values: flags.FlagValues, argv: list[str]) -> list[str]:
    for given in argv[1:]:
        name = given.lstrip("-").partition("=")[0]
        if name.startswith("config.") and name.removeprefix("config.") not in schema.field_names():
            field = name.removeprefix("config.")
            raise UserError(
                f"There is no field --{name}{renamed_hint(field) or did_you_mean(field, schema.field_names())}"
            )
    try:
        return values(argv)[1:]
    except flags.UnrecognizedFlagError as error:
        known = ("config", "workdir", "mode", "input", "help")
        raise UserError(f"There is no flag --{error.flagname}{did_you_mean(error.flagname, known)}") from error
    except (flags.Error, *CONFIG_ERRORS) as error:
        raise UserError(one_line(error)) from error


def _config(values: flags.FlagValues) -> Config:
    if values.config is None:
        raise UserError("Which config? Give --config=configs/NAME.py; --help shows the rest.")
    # A config may take an argument, as configs/NAME.py:ARGUMENT.
    file = values["config"].config_filename
    path = file.partition(":")[0]
    if not Path(path).is_file():
        raise UserError(f"There is no config file {path}{did_you_mean(path, map(str, Path('configs').glob('*.py')))}")
    try:
        config = schema.parse(values.config.copy_and_resolve_references())
    except CONFIG_ERRORS as error:
        raise UserError(f"{path}: {one_line(error)}") from error
    return dataclasses.replace(config, workdir=values.workdir or config.workdir or f"runs/{run_name(file)}")


def _config_of_run(values: flags.FlagValues) -> Config:
    """The config of a finished run, from its own folder."""
    workdir = values.workdir or (_config(values).workdir if values.config is not None else None)
    if workdir is None:
        raise UserError(f"--mode={values.mode} needs --workdir, the folder of a finished run.")
    from tljax.run.workdir import WorkDir

    folder = WorkDir(workdir)
    if (result := folder.read("result.json")) is None:
        raise UserError(f"{workdir} holds no finished run: it has no result.json.")
    if "rows" in result:
        raise UserError(
            f"{workdir} holds a sweep: take one of its runs, such as {workdir}/{result['cells'][0]['workdir']}."
        )
    return dataclasses.replace(folder.read_config(), workdir=workdir)


def _say_next(config: Config, console) -> None:
    if config.report.next_steps:
        console.print("\nWhat to try next:")
        for line in config.report.next_steps:
            console.print(f"  {line}", highlight=False, markup=False, soft_wrap=True)
