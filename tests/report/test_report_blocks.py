"""The picture of what learns: read off plans, and drawn."""

import json

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from tljax import config as schema
from tljax import models
from tljax.config import NeuronsConfig, Phase
from tljax.models.heads import auxiliary
from tljax.report import phase_diagram, style
from tljax.report.phase_diagram import PhaseRow, StageCell
from tljax.run.phase_rows import phase_rows
from tljax.train.plan import SplitSizes, plan_phase
from tljax.weights import PRESETS

STAGES = ["stem", "stage1", "stage2", "stage3"]


@pytest.fixture
def read():
    """A function of phases giving the rows of a ResNet-8 with a hint on stage1, 36 pictures and the rate 0.001."""

    def rows(*phases):
        model = models.create_model("resnet8", num_classes=3, image_size=8, rngs=None)
        auxiliary.add_hint(model, "stage1", 5)
        plans = [
            plan_phase(schema.Config(), phase, model, SplitSizes(36, 36, (28, 28, 3)), PRESETS["unit"])
            for phase in phases
        ]
        return phase_diagram.from_dicts(json.loads(json.dumps(phase_rows(plans, model, 0.001))))

    return rows


@pytest.fixture
def drawn(monkeypatch):
    """The figures saved during a test."""
    kept = []
    monkeypatch.setattr(phase_diagram, "save", lambda figure, path: kept.append(figure) or style.save(figure, path))
    return kept


def pixels(path):
    """The PNG as [H, W, 3], small, and not cut at the border."""
    assert path.stat().st_size < 25_000
    image = imread(path)[..., :3]
    assert image.shape[1] == style.WIDTH * style.DPI
    border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    assert (border > 0.99).all(), "something is cut at the border"
    return image


def share(image, colour):
    """Share of the pixels that have `colour`."""
    return np.mean(np.abs(image - to_rgb(colour)).max(axis=-1) < 0.02)


def words(figure):
    return [text.get_text() for text in figure.axes[0].texts]


def test_rules_shares_and_multiples_are_read_off_the_plans(read):
    head, rest = ("head/.*", 1.0), (".*", 0.0)
    top, everything = read(
        Phase("top", (("head/hint_.*", 0.0), head, ("stage3/.*/bn/.*", 0.5), rest), epochs=1),
        Phase("all", ((".*", 1.0),), epochs=3, layer_decay=0.5, optim={"lr": 0.01}, ema_decay=0.9),
    )
    assert (top.name, top.share, everything.share) == ("top", 0.25, 0.75)
    assert list(top.cells) == list(everything.cells) == [*STAGES, "head", "hint_stage1"]
    assert top.cells["stage1"] == StageCell(0, lr_multipliers=(), batch_stats=False)
    assert top.cells["head"] == StageCell(1.0)
    assert top.cells["hint_stage1"] == StageCell(0, lr_multipliers=())
    part = top.cells["stage3"]
    assert 0 < part.share < 0.02
    assert (part.lr_multipliers, part.batch_stats, part.partial) == ((0.5,), True, False)
    assert [everything.cells[s].lr_multipliers for s in STAGES] == [
        pytest.approx((10 * 0.5**depth,)) for depth in (4, 3, 2, 1)
    ]
    assert everything.cells["stem"].caption == "×0.625"
    assert (top.marks, everything.marks) == ((), ("average",))


def test_neurons_count_by_output_channels(read):
    neurons = NeuronsConfig(layers=("stage[23]/.*",), fraction=0.25)
    (row,) = read(Phase("neurons", ((".*", 0.0),), epochs=1, neurons=neurons))
    assert row.cells["stage2"] == StageCell(0.25, partial=True, batch_stats=False)
    assert row.cells["stage2"].caption == "25 %"
    assert row.cells["stage1"].share == row.cells["head"].share == 0


def test_marks_follow_what_objectives_need(read):
    objectives = (("cross_entropy", 1.0), ("hints", 1.0), ("delta", 0.1), ("fixmatch", 1.0))
    (row,) = read(Phase("busy", ((".*", 1.0),), epochs=1, losses=objectives, ema_decay=0.99))
    assert row.marks == tuple(phase_diagram.BADGES)


def test_colours_say_what_learns(tmp_path, drawn):
    kinds = {
        "a": StageCell(1.0),
        "b": StageCell(0.0),
        "c": StageCell(0.3, partial=True, batch_stats=False),
        "d": StageCell(0.3),
    }
    halves = []
    for name in kinds:
        row = PhaseRow("phase", 1.0, dict.fromkeys(kinds, kinds[name]))
        image = pixels(phase_diagram.draw_phase_diagram([row], tmp_path / f"{name}.png"))
        halves.append([share(image, colour) for colour in (style.BLUE, phase_diagram.PALE, phase_diagram.STILL)])
    (learns, *rest), (*none, frozen), (stripes, pale, _), (part, *_) = halves
    assert learns == pytest.approx(frozen, rel=0.15)
    assert learns > 0.2
    assert max(*rest, *none) < 1e-3
    assert 0.05 * learns < stripes < 0.15 * learns < pale
    assert part == pytest.approx(0.3 * 0.35 * learns, rel=0.2)


def test_words_fit_where_they_stand(tmp_path, drawn):
    many = {f"stage{i}": StageCell(0.1, True, (0.00125,), False) for i in range(9)} | {
        "head": StageCell(1.0, False, (0.1, 1))
    }
    phases = [
        PhaseRow("a phase whose name is long, and goes on", 1 / 3, many, tuple(phase_diagram.BADGES)[2:]),
        PhaseRow("next", 2 / 3, dict.fromkeys(many, StageCell(0.0, batch_stats=True)), ("teacher", "source")),
    ]
    pixels(phase_diagram.draw_phase_diagram(phases, tmp_path / "deep" / "many.png"))
    (figure,) = drawn
    found = words(figure)
    assert found[:10] == list(many)
    assert found.count("10 %  ×0.00125") == 9
    assert {"×0.1–1", "33.3 % of the epochs", "66.7 % of the epochs", "weak", "strong", "average"} <= set(found)
    for text in figure.axes[0].texts:
        width = style.WIDTH - phase_diagram.LEFT - phase_diagram.RIGHT
        box, room = text.get_window_extent(), width / len(many) * style.DPI
        left = text.get_ha() == "left"
        assert box.x0 >= 0
        assert box.x1 < (phase_diagram.LEFT * style.DPI if left else style.WIDTH * style.DPI), text
        assert text.get_text() in phase_diagram.BADGES or left or box.width < room, text


def test_the_key_shows_every_chip(tmp_path, drawn):
    pixels(phase_diagram.draw_legend(tmp_path / "key.png"))
    assert set(phase_diagram.BADGES) <= set(words(drawn[0]))


def test_nothing_to_draw(tmp_path):
    with pytest.raises(ValueError, match="no phases"):
        phase_diagram.draw_phase_diagram([], tmp_path / "none.png")
    rows = [PhaseRow("a", 0.5, {"x": StageCell(1.0)}), PhaseRow("b", 0.5, {"y": StageCell(1.0)})]
    with pytest.raises(ValueError, match="different blocks"):
        phase_diagram.draw_phase_diagram(rows, tmp_path / "none.png")
