"""What the host knows of a run decides when a phase ends, and what ends the run, without a step being taken."""

import types

import numpy as np
import pytest

from tljax.config import Config, TrainConfig
from tljax.errors import TrainingStopped
from tljax.train.callbacks import TrainProgress
from tljax.train.run_state import RunState, param_hashes


def member_in_phase(patience=None, steps=3, **progress):
    """A run in a phase of so many steps, three of which are an epoch, whose checkpoints nobody keeps."""
    phase = types.SimpleNamespace(name="head", losses=())
    plan = types.SimpleNamespace(phase=phase, steps=steps, steps_per_epoch=3.0, cache_plan=None, frozen_stages=())
    checkpoints = types.SimpleNamespace(save=lambda *args: None)
    config = Config(train=TrainConfig(patience_epochs=patience))
    return RunState(config, [plan, plan], checkpoints, None, TrainProgress(**progress))


def test_a_phase_that_changed_a_frozen_parameter_stops_the_run():
    before = {"stem/conv/kernel": np.ones((2, 2)), "stem/conv/bias": np.zeros(2)}

    def phase_after(leaves):
        member = member_in_phase(step=3, total=3, frozen=param_hashes(before, {}))
        member.save({"params": {}, "opt_state": ()}, None, None, lambda: param_hashes(leaves, {}), 1)
        return member.progress.phase

    assert phase_after(before) == 1
    with pytest.raises(TrainingStopped, match=r'Phase "head" changed frozen variables: stem/conv/bias\.'):
        phase_after(before | {"stem/conv/bias": np.array([0.0, 1e-30])})


@pytest.mark.parametrize(("total", "ends"), [(39, False), (44, False), (45, True)])
def test_patience_counts_from_the_best_validation_of_the_phase(total, ends):
    # Of the whole run, the best lies in an earlier phase.
    best = {"accuracy": 0.9, "loss": 0.1, "epoch": 3.0, "step": 9, "phase": "earlier"}
    phase_best = best | {"accuracy": 0.5, "epoch": 13.0, "step": 39}
    member = member_in_phase(2.0, 90, step=total - 30, total=total, frozen={}, best=best, phase_best=phase_best)
    member.save({"params": {}, "opt_state": ()}, None, {"accuracy": 0.4}, dict, 1)
    assert member.progress.phase == int(ends)
