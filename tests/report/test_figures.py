from itertools import pairwise

import numpy as np
import pytest
from matplotlib._pylab_helpers import Gcf
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from tljax.report import figures, style


@pytest.fixture
def saved_figures(monkeypatch):
    """The `Figure` objects saved during a test, in order."""
    saved = []

    def save(figure, path):
        saved.append(figure)
        return style.save_figure(figure, path)

    monkeypatch.setattr(figures, "save_figure", save)
    return saved


def read_png(path):
    """Return a PNG as [H, W, 3]; check its width, and that it is neither blank nor cut at the border."""
    image = imread(path)[..., :3]
    assert path.read_bytes().startswith(b"\x89PNG")
    assert image.shape[1] == style.WIDTH * style.DPI
    assert 0.003 < np.mean(image.min(axis=-1) < 0.9) < 0.95, "blank or flooded"
    border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    assert (border > 0.99).all(), "something is cut at the border"
    return image


def color_share(image, color):
    """Return the share of pixels that have `color`."""
    return np.mean(np.abs(image - to_rgb(color)).max(axis=-1) < 0.02)


def texts(axes):
    return [text.get_text() for text in axes.texts]


@pytest.mark.parametrize(
    "phases",
    [
        [("head", 1)],
        [("head", 1), ("block_4", 1), ("everything", 1)],
        [("head", 2), ("stage_4", 8), ("everything", 190)],
    ],
)
def test_curves_mark_phases_and_best_epoch(tmp_path, saved_figures, history, phases):
    rows = history(*phases)
    rows[0]["train"] = {"loss": None}
    path = figures.draw_curves(rows, tmp_path / "new" / "curves.png")
    image = read_png(path)
    assert path == tmp_path / "new" / "curves.png"
    assert color_share(image, style.ORANGE) > 1e-4
    for axes, key in zip(saved_figures[0].axes, ("loss", "accuracy"), strict=True):
        assert texts(axes) == [name for name, _ in phases]
        star = axes.collections[0].get_offsets()[0]
        assert star.tolist() == [rows[-1]["epoch"], rows[-1]["valid"][key]]
        lines = [line.get_xdata()[0] for line in axes.lines if line.get_linestyle() == "--"]
        assert lines == np.cumsum([count for _, count in phases])[:-1].tolist()
        boxes = [text.get_window_extent() for text in axes.texts]
        if axes.texts[0].get_rotation() == 0:
            assert all(a.x1 < b.x0 for a, b in pairwise(boxes))
    legend = [text.get_text() for text in saved_figures[0].legends[0].get_texts()]
    assert legend == ["training", "validation", f"best on validation (epoch {len(rows)})"]


def test_curves_without_best_or_rows(tmp_path, saved_figures, history):
    rows = [{**row, "best": False} for row in history(("head", 3))]
    read_png(figures.draw_curves(rows, tmp_path / "curves.png"))
    assert not saved_figures[0].axes[0].collections
    with pytest.raises(ValueError, match="no rows"):
        figures.draw_curves([], tmp_path / "none.png")


@pytest.mark.parametrize("count", [2, 10, 25, 100])
def test_confusion_labels_fit(tmp_path, saved_figures, count):
    matrix = np.eye(count, dtype=int) * 90 + 1
    names = [f"a rather long class name {index}" for index in range(count)]
    image = read_png(figures.draw_confusion(matrix, names, tmp_path / "confusion.png"))
    blue = image[..., 2] - image[..., 0]
    assert np.mean(blue > 0.35) > 0.4 / count * 0.2
    axes = saved_figures[0].axes[0]
    numbers = texts(axes)
    assert len(numbers) == (count**2 if count <= 25 else 0)
    assert not numbers or numbers[:2] == ["91", "1"]
    labels = axes.get_xticklabels()
    assert labels[-1].get_text().endswith(str(count - 1 if count < 100 else 98))
    assert labels[0].get_rotation() == (90 if count == 100 else 45)
    boxes = [label.get_window_extent() for label in axes.get_yticklabels()]
    assert all(b.y1 <= a.y0 + 3 for a, b in pairwise(boxes)), "overlap"


def test_confusion_of_an_absent_class_or_bad_shape(tmp_path, saved_figures):
    read_png(figures.draw_confusion([[5, 1], [0, 0]], ["a", "b"], tmp_path / "confusion.png"))
    assert saved_figures[0].axes[0].get_xticklabels()[0].get_rotation() == 0
    with pytest.raises(ValueError, match="does not fit 3"):
        figures.draw_confusion([[5, 1], [0, 0]], ["a", "b", "c"], tmp_path / "bad.png")


def test_roc_has_a_curve_for_each_of_few_classes(tmp_path, saved_figures, predictions):
    labels, probabilities = predictions(10, 30)
    names = [f"class {index}" for index in range(10)]
    present = labels != 4
    image = read_png(figures.draw_roc(labels[present], probabilities[present], names, tmp_path / "roc.png"))
    assert color_share(image, style.BLUE) > 1e-4
    legend = [text.get_text() for text in saved_figures[0].axes[0].get_legend().get_texts()]
    assert [text.rsplit(maxsplit=1)[0] for text in legend] == names[:4] + names[5:]
    assert all(0.9 < float(text.split()[-1]) <= 1 for text in legend)
    assert saved_figures[0].get_supxlabel() == "not in the labels: class 4"
    lines = saved_figures[0].axes[0].lines[:9]
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 9


def test_roc_averages_many_classes(tmp_path, saved_figures, predictions):
    labels, probabilities = predictions(30, 10)
    read_png(figures.draw_roc(labels, probabilities, [str(i) for i in range(30)], tmp_path / "roc.png"))
    axes = saved_figures[0].axes[0]
    (text,) = axes.get_legend().get_texts()
    assert text.get_text().startswith("macro average of 30  0.9")
    assert len(axes.lines) == 30 + 2
    average = axes.lines[30].get_ydata()
    assert (average[0], average[-1]) == (0, 1)
    assert (np.diff(average) >= 0).all()


def test_roc_of_a_weak_model_has_one_panel(tmp_path, saved_figures, predictions):
    labels, probabilities = predictions(3, 30, margin=0.2)
    read_png(figures.draw_roc(labels, probabilities, ["a", "b", "c"], tmp_path / "roc.png"))
    assert len(saved_figures[0].axes) == 1


def test_roc_of_one_class_is_a_message(tmp_path):
    image = read_png(figures.draw_roc([0, 0], np.full((2, 2), 0.5), ["a", "b"], tmp_path / "roc.png"))
    assert image.shape[0] < 300
    with pytest.raises(ValueError, match="do not fit 3 classes"):
        figures.draw_roc([0, 0], np.full((2, 2), 0.5), ["a", "b", "c"], tmp_path / "bad.png")


@pytest.mark.parametrize("channels", [1, 3])
def test_worst_is_ordered_by_loss(tmp_path, saved_figures, channels):
    labels = np.array([0, 1, 2, 0])
    probabilities = np.array([[0.9, 0.1, 0], [0.6, 0.3, 0.1], [0.02, 0.98, 0], [0.4, 0.5, 0.1]])
    images = np.zeros((4, 8, 8, channels), np.uint8)
    images[2, ..., 0] = 200
    names = ["a", "b", "c"]
    image = read_png(figures.draw_worst(images, labels, probabilities, names, tmp_path / "w.png"))
    shown = [axes for axes in saved_figures[0].axes if axes.images]
    assert [axes.get_title() for axes in shown] == ["c → b 0.98", "b → a 0.60", "a → b 0.50"]
    assert shown[0].images[0].get_interpolation() == "nearest"
    assert color_share(image, (200 / 255,) * 3 if channels == 1 else (200 / 255, 0, 0)) > 0.01
    figures.draw_worst(images, labels, probabilities, names, tmp_path / "w.png", count=1)
    assert sum(bool(axes.images) for axes in saved_figures[1].axes) == 1


def test_worst_fits_long_names_and_large_images(tmp_path, saved_figures):
    names = ["golden retriever (dog)", "$dollar$ class, very long"]
    images = np.full((30, 300, 200, 3), 90, np.uint8)
    labels, probabilities = np.zeros(30, int), np.tile([0.1, 0.9], (30, 1))
    read_png(figures.draw_worst(images, labels, probabilities, names, tmp_path / "w.png"))
    shown = [axes for axes in saved_figures[0].axes if axes.images]
    assert len(shown) == 24
    assert shown[0].images[0].get_interpolation() == "auto"
    boxes = [axes.title.get_window_extent() for axes in shown[:5]]
    assert all(a.x1 < b.x0 for a, b in pairwise(boxes)), "titles overlap"


def test_worst_without_errors_is_a_message(tmp_path):
    images = np.zeros((4, 8, 8, 1), np.uint8)
    probabilities = np.eye(4)
    path = tmp_path / "w.png"
    image = read_png(figures.draw_worst(images, np.arange(4), probabilities, list("abcd"), path))
    assert image.shape[0] < 300
    with pytest.raises(ValueError, match="uint8"):
        figures.draw_worst(images / 255.0, np.arange(4), probabilities, list("abcd"), path)
    with pytest.raises(ValueError, match="3 images"):
        figures.draw_worst(images[:3], np.arange(4), probabilities, list("abcd"), path)


def test_sweep_has_bars_with_intervals(tmp_path, saved_figures):
    rows = [
        {"settings": {"strategy.name": name}, "valid": (0.9, 0.02), "test": (mean, half_width)}
        for name, mean, half_width in (("probe", 0.8, None), ("lp_ft", 0.85, 0.05))
    ]
    image = read_png(figures.draw_sweep(rows, tmp_path / "sweep.png"))
    assert color_share(image, style.BLUE) > 0.05
    axes = saved_figures[0].axes[0]
    assert [patch.get_width() for patch in axes.patches] == pytest.approx([90, 90, 80, 85])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["probe", "lp_ft"]
    assert texts(axes) == ["90.00 ± 2.00", "90.00 ± 2.00", "80.00", "85.00 ± 5.00"]
    with pytest.raises(ValueError, match="no rows"):
        figures.draw_sweep([], tmp_path / "none.png")


def test_figures_leave_no_pyplot_state(tmp_path, history):
    before = set(Gcf.figs)
    figures.draw_curves(history(("head", 2)), tmp_path / "curves.png")
    assert set(Gcf.figs) == before


def test_short_cuts_in_the_middle():
    assert style.shorten("class name 12", 20) == "class name 12"
    assert style.shorten("a very long class name 12", 12) == "a very…e 12"
    assert style.shorten("$5", 9) == r"\$5"
