"""The command line: every error is one sentence with exit code 2 and leaves nothing behind."""

import pytest

from tests.conftest import ROOT
from tljax.run import cli

QUICK = "--config=configs/quickstart.py"
BAD = [
    ([QUICK, "--config.optim.lrr=1"], 'no field --config.optim.lrr; did you mean "optim.lr"?'),
    ([QUICK, "--config.optim.lr=fast"], "could not convert string to float: 'fast"),
    ([QUICK, "--config.optim.name=admaw"], 'did you mean "adamw"?'),
    ([QUICK, "--config.train.batch_size=0"], "train.batch_size must be at least 1, got 0."),
    ([QUICK, "--config.data.classes=5"], "two or more different classes"),
    ([QUICK, "--cnfig=x"], 'no flag --cnfig; did you mean "config"?'),
    ([QUICK, "--mode=trian"], 'no --mode "trian"; did you mean "train"?'),
    ([QUICK, "--mode=featurs"], 'no --mode "featurs"; did you mean "features"?'),
    ([QUICK, "--mode=probe"], "sweeps over seed alone, and this config over strategy.name, seed"),
    (["--mode=features"], "holds no finished run"),
    ([QUICK, "stray"], 'What is "stray"?'),
    ([QUICK, "--mode=predict"], "--mode=predict and --input=PICTURE_OR_FOLDER go together."),
    (["--config=configs/quikstart.py"], 'did you mean "configs/quickstart.py"?'),
    (["--config=configs/vgg16_fashion.py:clasic"], 'There is no variant "clasic"'),
    ([], "Which config?"),
    (["--mode=evaluate"], "needs --workdir"),
    (["--mode=evaluate", "--workdir=/nowhere"], "holds no finished run"),
]


@pytest.mark.parametrize(("arguments", "words"), BAD)
def test_bad_input_is_one_sentence_exit_code_2_and_nothing_written(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    workdir = [] if any("workdir" in a or a == "--mode=evaluate" for a in arguments) else [f"--workdir={tmp_path}/run"]
    before = sorted(ROOT.glob("runs/*"))
    assert cli.main(["run.py", *arguments, *workdir]) == 2
    err = capsys.readouterr().err
    assert words in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert not (tmp_path / "run").exists()
    assert sorted(ROOT.glob("runs/*")) == before


def test_a_misspelt_key_in_a_config_file(tmp_path, capsys):
    path = tmp_path / "bad.py"
    path.write_text(
        "from tljax import config\ndef get_config():\n    c = config.default()\n    c.optim.lrr = 1\n    return c\n"
    )
    assert cli.main(["run.py", f"--config={path}"]) == 2
    assert 'did you mean "lr" instead of "lrr"' in capsys.readouterr().err


def test_help_is_quick_and_shows_how_to_start(run_command):
    done = run_command("--help", PYTHONPROFILEIMPORTTIME="1")
    assert done.returncode == 0
    assert "--config=configs/quickstart.py" in done.stdout
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    assert "tljax.run.cli" in imported
    # What takes its time to import, and the modules that need it.
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


def test_the_exit_code_is_that_of_the_process(run_command):
    done = run_command("--cnfig=x")
    assert done.returncode == 2
    assert done.stderr == 'error: There is no flag --cnfig; did you mean "config"?\n'


def test_plan_prints_every_leaf_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("COLUMNS", "120")
    before = sorted(ROOT.glob("runs/*"))
    assert cli.main(["run.py", QUICK, "--mode=plan", f"--workdir={tmp_path}/run"]) == 0
    printed = capsys.readouterr().out
    for words in (
        "stage3/block0/unit2/bn/var",
        "325 of 77,717",
        "frozen prefix",
        "stem to stage3",
        "moves",
        "strategy",
    ):
        assert words in printed
    assert not list(tmp_path.iterdir())
    assert sorted(ROOT.glob("runs/*")) == before


def test_the_flops_of_a_plan_are_the_papers():
    """VGG-16 at 224x224 needs 30.7 GFLOP in its convolutions; the compiler leaves out products with padding, 3 %."""
    from tljax import config as schema
    from tljax.run.experiment import prepare
    from tljax.run.plan import phase_cost

    c = schema.default()
    c.model.backbone, c.strategy.name, c.data.image_size, c.train.batch_size = "vgg16", "scratch", 224, 2
    prepared = prepare(schema.parse(c))
    found = phase_cost(prepared, prepared.plans[0])
    assert found.forward_flops / 2 == pytest.approx(0.97 * 30.7e9, rel=0.01)
    assert found.step_flops / found.forward_flops == pytest.approx(3, rel=0.02)
    assert found.trainable_parameters == 14_714_688 + 512 * 10 + 10
