"""The command line: every error is one line with exit code 2, and nothing is written."""

import pytest

from tests.conftest import ROOT
from tljax.run import cli

QUICK = "--config=configs/quickstart.py"
TRANSFER = "--config=configs/pretrain_transfer.py"
BAD_ARGUMENTS = [
    ([QUICK, "--config.optim.lrr=1"], 'no field --config.optim.lrr; did you mean "optim.lr"?'),
    ([QUICK, "--config.optim.lr=fast"], "could not convert string to float: 'fast"),
    ([QUICK, "--config.optim.name=admaw"], 'did you mean "adamw"?'),
    ([QUICK, "--config.train.batch_size=0"], "train.batch_size must be at least 1, got 0."),
    ([QUICK, "--config.data.classes=5"], "two or more different classes"),
    ([QUICK, "--cnfig=x"], 'no flag --cnfig; did you mean "config"?'),
    ([QUICK, "--mode=trian"], 'no --mode "trian"; did you mean "train"?'),
    ([QUICK, "--mode=featurs"], 'no --mode "featurs"; did you mean "features"?'),
    ([QUICK, "--mode=probe"], "can sweep over seed only, but this config sweeps over method, seed"),
    (["--mode=features"], "holds no finished run"),
    ([QUICK, "stray"], 'Unexpected argument "stray"'),
    ([QUICK, "--mode=predict"], "--mode=predict needs --input=IMAGE_OR_FOLDER"),
    (["--config=configs/quikstart.py"], 'did you mean "configs/quickstart.py"?'),
    (["--config=configs/vgg16_fashion.py:clasic"], 'There is no variant "clasic"'),
    ([], "--config=configs/NAME.py is missing"),
    (["--mode=evaluate"], "needs --workdir"),
    (["--mode=evaluate", "--workdir=/nowhere"], "holds no finished run"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_ARGUMENTS)
def test_main_bad_input(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    workdir = [] if any("workdir" in a or a == "--mode=evaluate" for a in arguments) else [f"--workdir={tmp_path}/run"]
    before = sorted(ROOT.glob("runs/*"))
    assert cli.main(["run.py", *arguments, *workdir]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert not (tmp_path / "run").exists()
    assert sorted(ROOT.glob("runs/*")) == before


def test_main_misspelt_key_in_config_file(tmp_path, capsys):
    path = tmp_path / "bad.py"
    path.write_text(
        "from tljax import config\ndef get_config():\n    c = config.default()\n    c.optim.lrr = 1\n    return c\n"
    )
    assert cli.main(["run.py", f"--config={path}"]) == 2
    assert 'did you mean "lr" instead of "lrr"' in capsys.readouterr().err


def test_main_help_imports_nothing_slow(run_command):
    process = run_command("--help", PYTHONPROFILEIMPORTTIME="1")
    assert process.returncode == 0
    assert "--config=configs/quickstart.py" in process.stdout
    imported = {line.split("|")[-1].strip() for line in process.stderr.splitlines()}
    assert "tljax.run.cli" in imported
    # Packages that are slow to import, and modules that import them.
    assert not imported & {
        "flax",
        "orbax",
        "optax",
        "grain",
        "sklearn",
        "matplotlib",
        "tljax.models",
        "tljax.run.train",
    }


def test_command_exit_code(run_command):
    process = run_command("--cnfig=x")
    assert process.returncode == 2
    assert process.stderr == 'error: There is no flag --cnfig; did you mean "config"?\n'


def test_plan_prints_variables_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("COLUMNS", "120")
    before = sorted(ROOT.glob("runs/*"))
    assert cli.main(["run.py", TRANSFER, "--mode=plan", f"--workdir={tmp_path}/run"]) == 0
    printed = capsys.readouterr().out
    for text in (
        "stage3/block0/unit2/bn/var",
        "325 of 77,717",
        "frozen stages",
        "stem to stage3",
        "updated",
        "strategy",
    ):
        assert text in printed
    assert not list(tmp_path.iterdir())
    assert sorted(ROOT.glob("runs/*")) == before


def test_phase_cost_matches_paper():
    """VGG-16 at 224x224: 30.7 GFLOP in convolutions, of which XLA does not count products with padding, 3 %."""
    from tljax import config as schema
    from tljax.run.experiment import prepare
    from tljax.run.plan import phase_cost

    c = schema.default()
    c.model.backbone, c.strategy.name, c.data.image_size, c.train.batch_size = "vgg16", "scratch", 224, 2
    experiment = prepare(schema.parse(c))
    cost = phase_cost(experiment, experiment.plans[0])
    assert cost.forward_flops / 2 == pytest.approx(0.97 * 30.7e9, rel=0.01)
    assert cost.step_flops / cost.forward_flops == pytest.approx(3, rel=0.02)
    assert cost.trainable_parameters == 14_714_688 + 512 * 10 + 10
