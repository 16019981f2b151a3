"""Ranking and retention of checkpoints."""

import numpy as np
import pytest

from tljax.storage.checkpoints import CheckpointManager, ranking_key


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ((0.9, 2.0, 3.0), (0.8, 0.1, 1.0)),  # the score before the loss
        ((0.9, 0.5, 3.0), (0.9, 0.6, 1.0)),  # the loss before the epoch
        ((0.9, 0.5, 1.0), (0.9, 0.5, 3.0)),  # the earlier epoch
    ],
)
def test_ranking_key_compares_score_then_loss_then_epoch(better, worse):
    a, b = (dict(zip(("accuracy", "loss", "epoch"), values, strict=True)) for values in (better, worse))
    assert ranking_key(a) > ranking_key(b)


def test_manager_keeps_best_and_latest(tmp_path):
    scores = {1: 0.5, 2: 0.9, 3: 0.7, 4: None}
    (tmp_path / "checkpoints").mkdir()
    with CheckpointManager(tmp_path) as checkpoints:
        for step, score in scores.items():
            metrics = None if score is None else {"accuracy": score, "loss": 1.0, "epoch": float(step)}
            checkpoints.save(step, {"params": {"a": np.full(2, step, np.float32)}}, {}, metrics)
            checkpoints.wait()
        assert (checkpoints.best, checkpoints.latest) == (2, 4)
        assert checkpoints.load_variables(2)["a"].tolist() == [2, 2]
    steps = sorted(int(folder.name) for folder in (tmp_path / "checkpoints").iterdir() if folder.name.isdigit())
    assert steps == [2, 4]
