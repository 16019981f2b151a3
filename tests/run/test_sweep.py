"""A sweep's grid: every combination of values and of named settings."""

from tljax.config import Config, override
from tljax.run.sweep import expand_grid


def test_expand_grid_with_named_settings(tmp_path):
    slow = {"optim.name": "sgd", "optim.lr": 0.01}
    sweep = {"method": {"adam": {}, "slow sgd": slow}, "seed": [0, 1]}
    base = override(Config(), {"strategy.name": "scratch", "workdir": str(tmp_path), "optim.lr": 0.1})
    trials = expand_grid(override(base, {"sweep": sweep}))
    assert [trial.settings for trial in trials] == [
        {"method": method, "seed": seed} for method in sweep["method"] for seed in sweep["seed"]
    ]
    optimizers = [(trial.config.optim.name, trial.config.optim.lr, trial.config.seed) for trial in trials]
    assert optimizers == [("adam", 0.1, 0), ("adam", 0.1, 1), ("sgd", 0.01, 0), ("sgd", 0.01, 1)]
    assert [trial.config.folder.name for trial in trials][2] == "method=slow sgd,seed=0"
    assert all(trial.config.sweep == {} for trial in trials)
