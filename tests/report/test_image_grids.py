import math

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread
from PIL import Image

from tljax.losses.pixelwise import IGNORED
from tljax.report import image_grids, overlays, style
from tljax.report.image_grids import Boxes, Ranking

CLASSES = ["background", "tree", "a dog of some very long name", "car $5"]


@pytest.fixture
def saved_figures(monkeypatch):
    """The `Figure` objects saved during a test, in order."""
    saved = []

    def save(figure, path):
        saved.append(figure)
        return style.save_figure(figure, path)

    monkeypatch.setattr(image_grids, "save_figure", save)
    return saved


@pytest.fixture
def make_masks():
    """A function that returns images [3, 8, 10, channels], truth and predictions [3, 8, 10].

    Image i has a value of 50 i everywhere and one true tree pixel at (1, i).
    """

    def make(channels=3):
        images = np.full((3, 8, 10, channels), 50, np.uint8) * np.arange(3, dtype=np.uint8).reshape(3, 1, 1, 1)
        truth, predicted = np.zeros((2, 3, 8, 10), np.uint8)
        truth[np.arange(3), 1, np.arange(3)] = 1
        truth[:, 7] = IGNORED
        predicted[:, 4:6, 4:6] = 2
        return images, truth, predicted

    return make


def read_pixels(path, axes, shape):
    """Return what a PNG shows in `axes` at the pixel centers of an image of `shape` [H, W], uint8 [H, W, 3]."""
    image = np.round(255 * imread(path)[..., :3]).astype(int)
    rows, columns = (np.arange(n) + 0.5 for n in shape)
    x = axes.transData.transform(np.stack([columns, 0 * columns], 1))[:, 0]
    y = axes.transData.transform(np.stack([0 * rows, rows], 1))[:, 1]
    return image[(image.shape[0] - y).astype(int)[:, None], x.astype(int)]


def image_panels(figure):
    return [axes for axes in figure.axes if axes.images]


def legend_colors(figure):
    """Return {text: color} of the only legend of a figure."""
    (legend,) = figure.legends
    texts = [text.get_text() for text in legend.get_texts()]
    return dict(zip(texts, (patch.get_facecolor()[:3] for patch in legend.get_patches()), strict=True))


@pytest.mark.parametrize("channels", [1, 3])
def test_mask_grid_shows_pixels_in_class_colors(tmp_path, saved_figures, make_masks, channels):
    images, truth, predicted = make_masks(channels)
    order = [2, 0, 1]
    ious = [0.5, math.nan, 0.1]
    path = tmp_path / "new" / "m.png"
    assert image_grids.mask_grid(images, truth, predicted, CLASSES, path, Ranking(order, ious, "IoU")) == path
    panels = image_panels(saved_figures[0])
    assert [axes.get_title() for axes in panels[:5]] == ["input", "truth", "prediction", "wrong pixels", ""]
    colors = overlays.palette(3)
    for row, index in enumerate(order):
        image, truth_pixels, predicted_pixels, wrong_pixels = (
            read_pixels(path, axes, (8, 10)) for axes in panels[4 * row : 4 * row + 4]
        )
        assert (image == 50 * index).all()
        evaluated = truth[index] != IGNORED
        assert (truth_pixels[evaluated] == colors[truth[index][evaluated]]).all()
        assert (truth_pixels[~evaluated] == overlays.VOID).all()
        assert (predicted_pixels == colors[predicted[index]]).all()
        wrong = (wrong_pixels == image_grids.WRONG_COLOR).all(-1)
        assert (wrong == (evaluated & (truth[index] != predicted[index]))).all()
    assert panels[0].images[0].get_interpolation() == "nearest"
    assert [axes.texts[0].get_text() for axes in panels[::4]] == ["IoU 0.10", "IoU 0.50", "IoU –"]
    legend = legend_colors(saved_figures[0])
    assert list(legend) == ["background", "tree", "a dog of some v…ong name", "ignored"]
    np.testing.assert_allclose(np.array(list(legend.values()))[:3] * 255, colors)


def test_mask_grid_limits_rows_and_legend(tmp_path, saved_figures):
    truth = np.arange(3 * 12 * 12).reshape(3, 12, 12).astype(np.uint8) % 60
    truth[:, 6:] = np.arange(30, 60).repeat(2).repeat(4)[: 3 * 72].reshape(3, 6, 12)
    images = np.zeros((3, 12, 12, 3), np.uint8)
    names = [f"class {i} of many" for i in range(60)]
    path = image_grids.mask_grid(
        images, truth, truth, names, tmp_path / "m.png", Ranking([1, 2, 0], [0, 0, 0], "IoU", 2)
    )
    (figure,) = saved_figures
    assert len(image_panels(figure)) == 2 * 4
    listed = [text.get_text() for text in figure.legends[0].get_texts()]
    sizes = np.bincount(truth[[1, 2]].ravel(), minlength=60)
    assert listed[-1] == f"and {(sizes > 0).sum() - image_grids.MAX_LEGEND_CLASSES} rarer"
    unlisted_sizes = [sizes[i] for i in range(60) if names[i] not in listed]
    assert min(sizes[names.index(name)] for name in listed[:-1]) >= max(unlisted_sizes)
    box = figure.legends[0].get_window_extent()
    assert box.x0 > 0
    assert box.x1 < style.WIDTH * style.DPI
    assert box.y1 < min(axes.get_window_extent().y0 for axes in figure.axes)
    image = imread(path)
    assert image.shape[1] == style.WIDTH * style.DPI


def test_grids_reject_unfit_shapes(tmp_path, make_masks):
    images, truth, predicted = make_masks()
    path = image_grids.mask_grid(images, truth, predicted, CLASSES, tmp_path / "m.png", Ranking([], [0, 0, 0], "IoU"))
    assert imread(path).shape[0] < 300
    with pytest.raises(ValueError, match="not masks of images"):
        image_grids.mask_grid(images, truth[:2], predicted, CLASSES, path, Ranking([0], [0, 0, 0], "IoU"))
    with pytest.raises(ValueError, match="2 values do not fit 3 images"):
        image_grids.mask_grid(images, truth, predicted, CLASSES, path, Ranking([0], [0, 0], "IoU"))
    with pytest.raises(ValueError, match="not uint8"):
        image_grids.mask_grid(images / 255.0, truth, predicted, CLASSES, path, Ranking([0], [0, 0, 0], "IoU"))
    boxes, labels = np.zeros((3, 2, 4)), np.zeros((3, 2), int)
    with pytest.raises(ValueError, match="do not fit"):
        image_grids.box_grid(
            images,
            Boxes(boxes, labels),
            Boxes(boxes, labels, labels[:, :1]),
            CLASSES,
            path,
            Ranking([0], [0, 0, 0], "IoU"),
        )


def test_box_grid_shows_truth_beside_confident_predictions(tmp_path, saved_figures):
    images = np.full((3, 20, 30, 1), 90, np.uint8)
    truth_boxes = np.tile(np.array([[4, 6, 14, 21], [0, 0, 0, 0]], np.float32), (3, 1, 1))
    truth_labels = np.tile([1, -1], (3, 1))
    boxes = np.tile(np.array([[2, 3, 10, 12], [1, 1, 9, 9], [5, 5, 9, 9]], np.float32), (3, 1, 1))
    scores = np.tile([0.91, 0.1, 0.8], (3, 1))
    labels = np.tile([3, 2, -1], (3, 1))
    truth = Boxes(truth_boxes, truth_labels)
    predicted = Boxes(boxes, labels, scores)
    ranking = Ranking([1, 0, 2], [0.4, 0.2, 0.6], "AP")
    path = image_grids.box_grid(images, truth, predicted, CLASSES, tmp_path / "b.png", ranking)
    (figure,) = saved_figures
    panels = image_panels(figure)
    assert len(panels) == 6
    assert [axes.texts[0].get_text() for axes in panels[::2]] == ["AP 0.20", "AP 0.40", "AP 0.60"]
    truth_axes, predicted_axes = panels[:2]
    assert {patch.get_bbox().bounds for patch in truth_axes.patches} == {(6, 4, 15, 10)}
    assert {patch.get_bbox().bounds for patch in predicted_axes.patches} == {(3, 2, 9, 8)}
    assert [text.get_text() for text in predicted_axes.texts] == ["0.91"]
    assert list(legend_colors(figure)) == ["tree", r"car \$5"]
    image = np.round(255 * imread(path)[..., :3]).astype(int)
    x, y = truth_axes.transData.transform((21, 9))  # the middle of the right side of the box
    color = overlays.palette(2)[1]
    edge = image[int(image.shape[0] - y), int(x) - 3 : int(x) + 4]
    assert (np.abs(edge - color).max(-1) < 30).any()
    assert (read_pixels(path, truth_axes, (20, 30))[9, [0, 12, 28]] == 90).all()
    label = panels[2].texts[0].get_window_extent()
    assert predicted_axes.get_window_extent().x1 <= label.x0
    assert label.x1 <= panels[2].get_window_extent().x0


def test_precision_recall_has_a_curve_for_few_classes(tmp_path, saved_figures):
    recall = np.linspace(0, 1, 101)
    precision = {"car $5": np.where(recall <= 0.5, 1.0, 0.0), "tree": 1 - recall}
    path = image_grids.draw_precision_recall(recall, precision, CLASSES, tmp_path / "pr.png")
    (figure,) = saved_figures
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["tree  0.500", r"car \$5  0.505"]
    np.testing.assert_allclose(figure.axes[0].lines[0].get_ydata(), 1 - recall)
    assert figure.get_supxlabel() == "not in the labels: background, a dog of some…g name"
    image = imread(path)[..., :3]
    assert (np.abs(image - to_rgb(style.BLUE)).max(-1) < 0.02).mean() > 1e-4
    assert legend.get_window_extent().x0 >= figure.axes[0].get_window_extent().x1


def test_precision_recall_averages_many_classes(tmp_path, saved_figures):
    names = [f"class {i}" for i in range(12)]
    recall = np.linspace(0, 1, 101)
    precision = {name: np.full(101, i / 11) for i, name in enumerate(names)}
    image_grids.draw_precision_recall(recall, precision, names, tmp_path / "pr.png")
    (text,) = saved_figures[0].legends[0].get_texts()
    assert text.get_text() == "mean of 12  0.500"
    assert len(saved_figures[0].axes[0].lines) == 13
    for unfit in ({"ship": recall}, {"class 1": recall[:5]}):
        with pytest.raises(ValueError, match="fits neither"):
            image_grids.draw_precision_recall(recall, unfit, names, tmp_path / "bad.png")
    assert imread(image_grids.draw_precision_recall(recall, {}, names, tmp_path / "none.png")).shape[0] < 300


def test_palette_is_fixed_and_unique():
    colors = overlays.palette(255)
    assert (overlays.palette(20) == colors[:20]).all()
    assert len(np.unique(np.concatenate([colors, [overlays.VOID]]), axis=0)) == 256
    assert colors[:3].tolist() == [[0, 0, 0], [230, 159, 0], [86, 180, 233]]
    # The first light colors of VOC: (0, 128, 0), (128, 128, 0), (128, 0, 128), (0, 128, 128), ...
    assert colors[8:12].tolist() == [[0, 128, 0], [128, 128, 0], [128, 0, 128], [0, 128, 128]]
    assert (overlays.colorize(np.array([255, 1])) == [overlays.VOID, colors[1]]).all()


def test_mask_png_stores_classes_and_their_colors(tmp_path):
    classes = np.array([[0, 1, 2], [254, IGNORED, 7]], np.uint8)
    with Image.open(overlays.save_mask_png(classes, tmp_path / "new" / "m.png")) as image:
        assert image.mode == "P"
        np.testing.assert_array_equal(np.asarray(image), classes)
        np.testing.assert_array_equal(np.asarray(image.convert("RGB")), overlays.colorize(classes))


@pytest.mark.parametrize("channels", [1, 3])
def test_mask_overlay_has_tint_contours_and_legend(channels):
    image = np.full((8, 16, channels), 100, np.uint8)
    classes = np.zeros((8, 16), np.uint8)
    classes[2:6, 4:12] = 1
    classes[7] = IGNORED
    overlay = overlays.mask_overlay(image, classes, CLASSES)
    k = 512 // 16
    assert overlay.shape[1] == 512
    orange = overlays.palette(2)[1]
    assert (overlay[4 * k, 8 * k] == np.round(50 + orange / 2)).all()
    assert (overlay[k // 2, k // 2] == 50).all()
    assert (overlay[7 * k + k // 2, k] == 100).all()
    assert (overlay[4 * k, 4 * k] == orange).all()
    legend = overlay[8 * k :]
    assert (legend == orange).all(-1).sum() > 100
    assert (legend == overlays.palette(3)[2]).all(-1).sum() == 0
    assert (legend[:, -1] == 255).all()


def test_mask_overlay_wraps_a_long_legend():
    image = np.zeros((8, 8, 3), np.uint8)
    classes = np.arange(64, dtype=np.uint8).reshape(8, 8) // 4
    names = [f"some class {i}" for i in range(16)]
    few = overlays.mask_overlay(image, classes // 8, names)
    many = overlays.mask_overlay(image, classes, names)
    assert len(many) > len(few) > 512
    assert all((many[512:] == color).all(-1).any() for color in overlays.palette(16)[1:])


def test_box_overlay_outlines_the_covered_pixels():
    boxes = np.array([[4, 8, 12, 24], [0, 0, 30, 30], [0, 0, 0, 0]], np.float32)
    labels = np.array([1, 2, -1])
    image = np.full((32, 32, 1), 60, np.uint8)
    overlay = overlays.box_overlay(image, boxes, labels, np.array([0.9, 0.2, 0.0]), CLASSES)
    k = 16
    orange = overlays.palette(2)[1]
    assert overlay.shape == (512, 512, 3)
    for y, x in ((8 * k, 8 * k + 2), (8 * k, 24 * k - 3), (12 * k - 3, 16 * k)):
        assert (overlay[y, x] == orange).all()
    assert (overlay[8 * k, [8 * k, 24 * k - 1]] == 255).all()
    assert (overlay[8 * k, [8 * k - 1, 8 * k + 5, 24 * k]] == 60).all()
    tag = overlay[4 * k - 19 : 4 * k, 8 * k : 8 * k + 60]
    assert (tag == orange).all(-1).mean() > 0.4
    assert (tag.max(-1) < 60).any()
    truth = overlays.box_overlay(np.zeros((600, 800, 3), np.uint8), boxes, labels, None, CLASSES)
    assert truth.shape == (600, 800, 3)
