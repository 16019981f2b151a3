"""The map of tuned fields: what it shows, and when there is none."""

import itertools
import math

import numpy as np
from PIL import Image

from tljax.report import heat_map


def cells():
    settings = itertools.product((1e-3, 1e-2), ("adam", "sgd"), (False, True), (0, 1))
    fields = ("optim.lr", "optim.name", "augment.flip", "seed")
    made = [{"settings": dict(zip(fields, values, strict=True)), "valid": 0.5} for values in settings]
    for cell in made:
        s = cell["settings"]
        cell["valid"] = 0.5 + 0.1 * s["augment.flip"] + 0.02 * s["seed"] + s["optim.lr"]
        if (s["optim.lr"], s["optim.name"], s["seed"]) == (1e-2, "sgd", 1):
            cell["valid"] = None  # it diverged
    return made


def test_a_cell_is_the_best_of_the_means_over_seeds(tmp_path, monkeypatch):
    grids, grid = [], heat_map._grid
    monkeypatch.setattr(heat_map, "_grid", lambda *a: grids.append(grid(*a)) or grids[-1])
    tuned = ["optim.lr", "optim.name", "augment.flip"]
    path = heat_map.draw_heat_map(cells(), tuned, tmp_path / "map.png")
    (found,) = grids
    np.testing.assert_allclose(found[0], [0.611, 0.611])
    assert found[1, 0] == 0.62
    assert math.isnan(found[1, 1])
    assert Image.open(path).size[0] == 1200


def test_one_field_makes_no_map(tmp_path):
    assert heat_map.draw_heat_map(cells(), ["optim.lr"], tmp_path / "none.png") is None
    assert not (tmp_path / "none.png").exists()
