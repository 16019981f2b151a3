"""Heat maps of tuned fields: their values, and when none is drawn."""

import itertools
import math

import numpy as np
from PIL import Image

from tljax.report import heat_map


def make_trials():
    settings = itertools.product((1e-3, 1e-2), ("adam", "sgd"), (False, True), (0, 1))
    fields = ("optim.lr", "optim.name", "augment.flip", "seed")
    trials = [{"settings": dict(zip(fields, values, strict=True)), "valid": 0.5} for values in settings]
    for trial in trials:
        s = trial["settings"]
        trial["valid"] = 0.5 + 0.1 * s["augment.flip"] + 0.02 * s["seed"] + s["optim.lr"]
        if (s["optim.lr"], s["optim.name"], s["seed"]) == (1e-2, "sgd", 1):
            trial["valid"] = None  # diverged
    return trials


def test_heat_map_shows_the_best_mean_over_seeds(tmp_path, monkeypatch):
    grids = []
    make_grid = heat_map._grid
    monkeypatch.setattr(heat_map, "_grid", lambda *args: grids.append(make_grid(*args)) or grids[-1])
    tuned = ["optim.lr", "optim.name", "augment.flip"]
    path = heat_map.draw_heat_map(make_trials(), tuned, tmp_path / "map.png")
    (grid,) = grids
    np.testing.assert_allclose(grid[0], [0.611, 0.611])
    assert grid[1, 0] == 0.62
    assert math.isnan(grid[1, 1])
    assert Image.open(path).size[0] == 1200


def test_heat_map_needs_two_varying_fields(tmp_path):
    assert heat_map.draw_heat_map(make_trials(), ["optim.lr"], tmp_path / "none.png") is None
    assert not (tmp_path / "none.png").exists()
