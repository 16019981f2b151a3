"""Phase diagrams: their data from phase plans, and the drawing."""

import json

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from tljax import config as schema
from tljax import models
from tljax.config import NeuronsConfig, Phase
from tljax.inference.predictor import Predictor
from tljax.models.heads import auxiliary
from tljax.report import phase_diagram, style
from tljax.report.phase_diagram import PhaseRow, StageCell
from tljax.run.phase_rows import phase_rows
from tljax.train.plan import SplitSizes, plan_phase
from tljax.weights import PRESETS

STAGES = ["stem", "stage1", "stage2", "stage3"]


@pytest.fixture
def make_rows():
    """A function that returns the rows of phases: ResNet-8 with a hint on stage1, 36 images, learning rate 0.001."""

    def rows(*phases):
        model = models.create_model("resnet8", num_classes=3, image_size=8, rngs=None)
        auxiliary.add_hint(model, "stage1", 5)
        predictor = Predictor.of_model(schema.Config(), model, ("a", "b", "c"), PRESETS["unit"])
        plans = [plan_phase(phase, predictor, SplitSizes(36, 36, (28, 28, 3))) for phase in phases]
        return phase_diagram.from_dicts(json.loads(json.dumps(phase_rows(plans, predictor))))

    return rows


@pytest.fixture
def saved_figures(monkeypatch):
    """The `Figure` objects saved during a test, in order."""
    figures = []
    monkeypatch.setattr(
        phase_diagram, "save_figure", lambda figure, path: figures.append(figure) or style.save_figure(figure, path)
    )
    return figures


def read_png(path):
    """Return a PNG as [H, W, 3]; check its file size and width, and that nothing is cut at the border."""
    assert path.stat().st_size < 25_000
    image = imread(path)[..., :3]
    assert image.shape[1] == style.WIDTH * style.DPI
    border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    assert (border > 0.99).all(), "something is cut at the border"
    return image


def color_share(image, color):
    """Return the share of pixels that have `color`."""
    return np.mean(np.abs(image - to_rgb(color)).max(axis=-1) < 0.02)


def texts(figure):
    return [text.get_text() for text in figure.axes[0].texts]


def test_phase_rows_have_shares_and_multipliers(make_rows):
    head = ("head/.*", 1.0)
    rest = (".*", 0.0)
    top, all_stages = make_rows(
        Phase("top", (("head/hint_.*", 0.0), head, ("stage3/.*/bn/.*", 0.5), rest), epochs=1),
        Phase("all", ((".*", 1.0),), epochs=3, layer_decay=0.5, optim={"lr": 0.01}, ema_decay=0.9),
    )
    assert (top.name, top.share, all_stages.share) == ("top", 0.25, 0.75)
    assert list(top.cells) == list(all_stages.cells) == [*STAGES, "head", "hint_stage1"]
    assert top.cells["stage1"] == StageCell(0, lr_multipliers=(), batch_stats=False)
    assert top.cells["head"] == StageCell(1.0)
    assert top.cells["hint_stage1"] == StageCell(0, lr_multipliers=())
    partly = top.cells["stage3"]
    assert 0 < partly.share < 0.02
    assert (partly.lr_multipliers, partly.batch_stats, partly.partial) == ((0.5,), True, False)
    assert [all_stages.cells[s].lr_multipliers for s in STAGES] == [
        pytest.approx((10 * 0.5**depth,)) for depth in (4, 3, 2, 1)
    ]
    assert all_stages.cells["stem"].caption == "×0.625"
    assert (top.badges, all_stages.badges) == ((), ("ema",))


def test_phase_rows_of_neurons_count_output_channels(make_rows):
    neurons = NeuronsConfig(layers=("stage[23]/.*",), fraction=0.25)
    (row,) = make_rows(Phase("neurons", ((".*", 0.0),), epochs=1, neurons=neurons))
    assert row.cells["stage2"] == StageCell(0.25, partial=True, batch_stats=False)
    assert row.cells["stage2"].caption == "25 %"
    assert row.cells["stage1"].share == row.cells["head"].share == 0


def test_phase_rows_badges_follow_the_losses(make_rows):
    losses = (("cross_entropy", 1.0), ("hints", 1.0), ("delta", 0.1), ("fixmatch", 1.0))
    (row,) = make_rows(Phase("busy", ((".*", 1.0),), epochs=1, losses=losses, ema_decay=0.99))
    assert row.badges == tuple(phase_diagram.BADGES)


def test_draw_phase_diagram_colors_show_what_is_trainable(tmp_path, saved_figures):
    cells = {
        "full": StageCell(1.0),
        "frozen": StageCell(0.0),
        "channels": StageCell(0.3, partial=True, batch_stats=False),
        "partly": StageCell(0.3),
    }
    colors = {"blue": style.BLUE, "pale": phase_diagram.PARTIAL_COLOR, "grey": phase_diagram.FROZEN_COLOR}
    shares = {}
    for name, cell in cells.items():
        row = PhaseRow("phase", 1.0, dict.fromkeys(cells, cell))
        image = read_png(phase_diagram.draw_phase_diagram([row], tmp_path / f"{name}.png"))
        shares[name] = {color: color_share(image, value) for color, value in colors.items()}
    full = shares["full"]["blue"]
    assert full == pytest.approx(shares["frozen"]["grey"], rel=0.15)
    assert full > 0.2
    assert max(shares["full"]["pale"], shares["full"]["grey"]) < 1e-3
    assert max(shares["frozen"]["blue"], shares["frozen"]["pale"]) < 1e-3
    assert 0.05 * full < shares["channels"]["blue"] < 0.15 * full < shares["channels"]["pale"]
    assert shares["partly"]["blue"] == pytest.approx(0.3 * 0.35 * full, rel=0.2)


def test_draw_phase_diagram_text_fits(tmp_path, saved_figures):
    many = {f"stage{i}": StageCell(0.1, True, (0.00125,), False) for i in range(9)} | {
        "head": StageCell(1.0, False, (0.1, 1))
    }
    phases = [
        PhaseRow("a phase whose name is long, and goes on", 1 / 3, many, tuple(phase_diagram.BADGES)[2:]),
        PhaseRow("next", 2 / 3, dict.fromkeys(many, StageCell(0.0, batch_stats=True)), ("teacher", "source")),
    ]
    read_png(phase_diagram.draw_phase_diagram(phases, tmp_path / "deep" / "many.png"))
    (figure,) = saved_figures
    written = texts(figure)
    assert written[:10] == list(many)
    assert written.count("10 %  ×0.00125") == 9
    assert {"×0.1–1", "33.3 % of the epochs", "66.7 % of the epochs", "weak", "strong", "ema"} <= set(written)
    for text in figure.axes[0].texts:
        width = style.WIDTH - phase_diagram.LEFT - phase_diagram.RIGHT
        box = text.get_window_extent()
        column_width = width / len(many) * style.DPI
        left_aligned = text.get_ha() == "left"
        assert box.x0 >= 0
        assert box.x1 < (phase_diagram.LEFT * style.DPI if left_aligned else style.WIDTH * style.DPI), text
        assert text.get_text() in phase_diagram.BADGES or left_aligned or box.width < column_width, text


def test_draw_legend_shows_every_badge(tmp_path, saved_figures):
    read_png(phase_diagram.draw_legend(tmp_path / "legend.png"))
    assert set(phase_diagram.BADGES) <= set(texts(saved_figures[0]))


def test_draw_phase_diagram_rejects_unfit_phases(tmp_path):
    with pytest.raises(ValueError, match="no phases"):
        phase_diagram.draw_phase_diagram([], tmp_path / "none.png")
    rows = [PhaseRow("a", 0.5, {"x": StageCell(1.0)}), PhaseRow("b", 0.5, {"y": StageCell(1.0)})]
    with pytest.raises(ValueError, match="different stages"):
        phase_diagram.draw_phase_diagram(rows, tmp_path / "none.png")
