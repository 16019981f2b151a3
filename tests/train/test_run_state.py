"""The end of a phase and of a run, as `RunState` decides it without any training step."""

import types

import numpy as np
import pytest

from tljax.config import Config, TrainConfig
from tljax.errors import TrainingStopped
from tljax.train.callbacks import TrainProgress
from tljax.train.run_state import RunState, param_hashes


def make_run(patience=None, steps=3, **progress):
    """Return a run in a phase of `steps` steps and three steps per epoch, which saves no checkpoints."""
    phase = types.SimpleNamespace(name="head", losses=())
    plan = types.SimpleNamespace(phase=phase, steps=steps, steps_per_epoch=3.0, cache_plan=None, frozen_stages=())
    checkpoints = types.SimpleNamespace(save=lambda *args: None)
    config = Config(train=TrainConfig(patience_epochs=patience))
    return RunState(config, [plan, plan], checkpoints, None, TrainProgress(**progress))


def test_changed_frozen_variable_stops_the_run():
    before = {"stem/conv/kernel": np.ones((2, 2)), "stem/conv/bias": np.zeros(2)}

    def phase_after_save(variables):
        run = make_run(step=3, total=3, frozen=param_hashes(before, {}))
        run.save({"params": {}, "opt_state": ()}, None, None, lambda: param_hashes(variables, {}), 1)
        return run.progress.phase

    assert phase_after_save(before) == 1
    with pytest.raises(TrainingStopped, match=r'Phase "head" changed frozen variables: stem/conv/bias\.'):
        phase_after_save(before | {"stem/conv/bias": np.array([0.0, 1e-30])})


@pytest.mark.parametrize(("total", "stopped"), [(39, False), (44, False), (45, True)])
def test_patience_counts_from_best_validation_of_phase(total, stopped):
    # The best validation of the run is in an earlier phase.
    best = {"accuracy": 0.9, "loss": 0.1, "epoch": 3.0, "step": 9, "phase": "earlier"}
    phase_best = best | {"accuracy": 0.5, "epoch": 13.0, "step": 39}
    run = make_run(2.0, 90, step=total - 30, total=total, frozen={}, best=best, phase_best=phase_best)
    run.save({"params": {}, "opt_state": ()}, None, {"accuracy": 0.4}, dict, 1)
    assert run.progress.phase == int(stopped)
