import math

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread
from PIL import Image

from tljax.losses.pixelwise import IGNORED
from tljax.report import image_grids, overlays, style

CLASSES = ["background", "tree", "a dog of some very long name", "car $5"]


@pytest.fixture
def drawn(monkeypatch):
    """The `Figure` objects saved during a test, in order."""
    kept = []

    def save(figure, path):
        kept.append(figure)
        return style.save(figure, path)

    monkeypatch.setattr(image_grids, "save", save)
    return kept


@pytest.fixture
def scenes():
    """Pictures [3, 8, 10, c], truth and prediction: picture i has a value of 50 i and one true tree pixel at (1, i)."""

    def make(channels=3):
        images = np.full((3, 8, 10, channels), 50, np.uint8) * np.arange(3, dtype=np.uint8).reshape(3, 1, 1, 1)
        truth, predicted = np.zeros((2, 3, 8, 10), np.uint8)
        truth[np.arange(3), 1, np.arange(3)] = 1
        truth[:, 7] = IGNORED
        predicted[:, 4:6, 4:6] = 2
        return images, truth, predicted

    return make


def centres(path, axes, shape):
    """What the PNG shows at the centres of the pixels of a picture [H, W] in `axes`, uint8 [H, W, 3]."""
    image = np.round(255 * imread(path)[..., :3]).astype(int)
    rows, columns = (np.arange(n) + 0.5 for n in shape)
    x = axes.transData.transform(np.stack([columns, 0 * columns], 1))[:, 0]
    y = axes.transData.transform(np.stack([0 * rows, rows], 1))[:, 1]
    return image[(image.shape[0] - y).astype(int)[:, None], x.astype(int)]


def panels(figure):
    return [axes for axes in figure.axes if axes.images]


def legend(figure):
    (found,) = figure.legends
    texts = [text.get_text() for text in found.get_texts()]
    return dict(zip(texts, (patch.get_facecolor()[:3] for patch in found.get_patches()), strict=True))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_mask_sheet_shows_each_pixel_in_the_colour_of_its_class(tmp_path, drawn, scenes, channels):
    images, truth, predicted = scenes(channels)
    order, ious, path = [2, 0, 1], [0.5, math.nan, 0.1], tmp_path / "made" / "m.png"
    assert image_grids.mask_grid(images, truth, predicted, CLASSES, path, order, ious) == path
    shown = panels(drawn[0])
    assert [axes.get_title() for axes in shown[:5]] == ["input", "truth", "prediction", "wrong pixels", ""]
    colours = overlays.palette(3)
    for line, index in enumerate(order):
        seen = [centres(path, axes, (8, 10)) for axes in shown[4 * line : 4 * line + 4]]
        assert (seen[0] == 50 * index).all()
        known = truth[index] != IGNORED
        assert (seen[1][known] == colours[truth[index][known]]).all()
        assert (seen[1][~known] == overlays.VOID).all()
        assert (seen[2] == colours[predicted[index]]).all()
        wrong = (seen[3] == image_grids.WRONG).all(-1)
        assert (wrong == (known & (truth[index] != predicted[index]))).all()
    assert shown[0].images[0].get_interpolation() == "nearest"
    assert [axes.texts[0].get_text() for axes in shown[::4]] == ["IoU 0.10", "IoU 0.50", "IoU –"]
    named = legend(drawn[0])
    assert list(named) == ["background", "tree", "a dog of some v…ong name", "does not count"]
    np.testing.assert_allclose(np.array(list(named.values()))[:3] * 255, colours)


def test_a_sheet_has_so_many_rows_and_a_legend_of_the_commonest_classes(tmp_path, drawn):
    truth = np.arange(3 * 12 * 12).reshape(3, 12, 12).astype(np.uint8) % 60
    truth[:, 6:] = np.arange(30, 60).repeat(2).repeat(4)[: 3 * 72].reshape(3, 6, 12)
    images = np.zeros((3, 12, 12, 3), np.uint8)
    names = [f"class {i} of many" for i in range(60)]
    path = image_grids.mask_grid(images, truth, truth, names, tmp_path / "m.png", [1, 2, 0], [0, 0, 0], count=2)
    assert len(panels(drawn[0])) == 2 * 4
    found = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    sizes = np.bincount(truth[[1, 2]].ravel(), minlength=60)
    assert found[-1] == f"and {(sizes > 0).sum() - image_grids.MOST_NAMED} rarer"
    rest = [sizes[i] for i in range(60) if names[i] not in found]
    assert min(sizes[names.index(name)] for name in found[:-1]) >= max(rest)
    place = drawn[0].legends[0].get_window_extent()
    assert place.x0 > 0
    assert place.x1 < style.WIDTH * style.DPI
    assert place.y1 < min(axes.get_window_extent().y0 for axes in drawn[0].axes)
    image = imread(path)
    assert image.shape[1] == style.WIDTH * style.DPI


def test_sheets_of_nothing_say_so_and_unfit_shapes_are_named(tmp_path, scenes):
    images, truth, predicted = scenes()
    path = image_grids.mask_grid(images, truth, predicted, CLASSES, tmp_path / "m.png", [], [0, 0, 0])
    assert imread(path).shape[0] < 300
    with pytest.raises(ValueError, match="not masks of images"):
        image_grids.mask_grid(images, truth[:2], predicted, CLASSES, path, [0], [0, 0, 0])
    with pytest.raises(ValueError, match="2 numbers do not fit 3 images"):
        image_grids.mask_grid(images, truth, predicted, CLASSES, path, [0], [0, 0])
    with pytest.raises(ValueError, match="not uint8"):
        image_grids.mask_grid(images / 255.0, truth, predicted, CLASSES, path, [0], [0, 0, 0])
    boxes, labels = np.zeros((3, 2, 4)), np.zeros((3, 2), int)
    with pytest.raises(ValueError, match="do not fit"):
        image_grids.box_grid(images, boxes, labels, boxes, labels[:, :1], labels, CLASSES, path, [0], [0, 0, 0])


def test_a_box_sheet_has_truth_and_confident_predictions_side_by_side(tmp_path, drawn):
    images = np.full((3, 20, 30, 1), 90, np.uint8)
    truth_boxes = np.tile(np.array([[4, 6, 14, 21], [0, 0, 0, 0]], np.float32), (3, 1, 1))
    truth_labels = np.tile([1, -1], (3, 1))
    boxes = np.tile(np.array([[2, 3, 10, 12], [1, 1, 9, 9], [5, 5, 9, 9]], np.float32), (3, 1, 1))
    scores, labels = np.tile([0.91, 0.1, 0.8], (3, 1)), np.tile([3, 2, -1], (3, 1))
    known, found = (truth_boxes, truth_labels), (boxes, scores, labels)
    path = image_grids.box_grid(images, *known, *found, CLASSES, tmp_path / "b.png", [1, 0, 2], [0.4, 0.2, 0.6])
    shown = panels(drawn[0])
    assert len(shown) == 6
    assert [axes.texts[0].get_text() for axes in shown[::2]] == ["AP 0.20", "AP 0.40", "AP 0.60"]
    true, guess = shown[:2]
    assert {patch.get_bbox().bounds for patch in true.patches} == {(6, 4, 15, 10)}
    assert {patch.get_bbox().bounds for patch in guess.patches} == {(3, 2, 9, 8)}
    assert [text.get_text() for text in guess.texts] == ["0.91"]
    assert list(legend(drawn[0])) == ["tree", r"car \$5"]
    image = np.round(255 * imread(path)[..., :3]).astype(int)
    x, y = true.transData.transform((21, 9))  # the middle of the right side of the box
    colour = overlays.palette(2)[1]
    near = image[int(image.shape[0] - y), int(x) - 3 : int(x) + 4]
    assert (np.abs(near - colour).max(-1) < 30).any()
    assert (centres(path, true, (20, 30))[9, [0, 12, 28]] == 90).all()
    label, left = shown[2].texts[0].get_window_extent(), guess.get_window_extent()
    assert left.x1 <= label.x0
    assert label.x1 <= shown[2].get_window_extent().x0


def test_precision_recall_names_the_average_precision_of_few_classes(tmp_path, drawn):
    recall = np.linspace(0, 1, 101)
    precision = {"car $5": np.where(recall <= 0.5, 1.0, 0.0), "tree": 1 - recall}
    path = image_grids.draw_precision_recall(recall, precision, CLASSES, tmp_path / "pr.png")
    (found,) = drawn[0].legends
    assert [text.get_text() for text in found.get_texts()] == ["tree  0.500", r"car \$5  0.505"]
    np.testing.assert_allclose(drawn[0].axes[0].lines[0].get_ydata(), 1 - recall)
    assert drawn[0].get_supxlabel() == "not in the labels: background, a dog of some…g name"
    image = imread(path)[..., :3]
    assert (np.abs(image - to_rgb(style.BLUE)).max(-1) < 0.02).mean() > 1e-4
    assert found.get_window_extent().x0 >= drawn[0].axes[0].get_window_extent().x1


def test_precision_recall_averages_many_classes_and_refuses_unfit_ones(tmp_path, drawn):
    names, recall = [f"class {i}" for i in range(12)], np.linspace(0, 1, 101)
    precision = {name: np.full(101, i / 11) for i, name in enumerate(names)}
    image_grids.draw_precision_recall(recall, precision, names, tmp_path / "pr.png")
    (text,) = drawn[0].legends[0].get_texts()
    assert text.get_text() == "mean of 12  0.500"
    assert len(drawn[0].axes[0].lines) == 13
    for unfit in ({"ship": recall}, {"class 1": recall[:5]}):
        with pytest.raises(ValueError, match="fits neither"):
            image_grids.draw_precision_recall(recall, unfit, names, tmp_path / "bad.png")
    assert imread(image_grids.draw_precision_recall(recall, {}, names, tmp_path / "none.png")).shape[0] < 300


def test_the_palette_is_fixed_and_has_no_colour_twice():
    colours = overlays.palette(255)
    assert (overlays.palette(20) == colours[:20]).all()
    assert len(np.unique(np.concatenate([colours, [overlays.VOID]]), axis=0)) == 256
    assert colours[:3].tolist() == [[0, 0, 0], [230, 159, 0], [86, 180, 233]]
    # Of VOC's first colours, the light ones: (0, 128, 0), (128, 128, 0), (128, 0, 128), (0, 128, 128), ...
    assert colours[8:12].tolist() == [[0, 128, 0], [128, 128, 0], [128, 0, 128], [0, 128, 128]]
    assert (overlays.colorize(np.array([255, 1])) == [overlays.VOID, colours[1]]).all()


def test_a_mask_png_holds_the_classes_and_shows_their_colours(tmp_path):
    classes = np.array([[0, 1, 2], [254, IGNORED, 7]], np.uint8)
    with Image.open(overlays.mask_png(classes, tmp_path / "made" / "m.png")) as picture:
        assert picture.mode == "P"
        np.testing.assert_array_equal(np.asarray(picture), classes)
        np.testing.assert_array_equal(np.asarray(picture.convert("RGB")), overlays.colorize(classes))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_mask_overlay_tints_encloses_and_names_what_it_shows(channels):
    image, classes = np.full((8, 16, channels), 100, np.uint8), np.zeros((8, 16), np.uint8)
    classes[2:6, 4:12], classes[7] = 1, IGNORED
    found = overlays.mask_overlay(image, classes, CLASSES)
    k = 512 // 16
    assert found.shape[1] == 512
    orange = overlays.palette(2)[1]
    assert (found[4 * k, 8 * k] == np.round(50 + orange / 2)).all()
    assert (found[k // 2, k // 2] == 50).all()
    assert (found[7 * k + k // 2, k] == 100).all()
    assert (found[4 * k, 4 * k] == orange).all()
    strip = found[8 * k :]
    assert (strip == orange).all(-1).sum() > 100
    assert (strip == overlays.palette(3)[2]).all(-1).sum() == 0
    assert (strip[:, -1] == 255).all()


def test_a_legend_too_long_for_a_line_has_more():
    image, classes = np.zeros((8, 8, 3), np.uint8), np.arange(64, dtype=np.uint8).reshape(8, 8) // 4
    names = [f"some class {i}" for i in range(16)]
    few = overlays.mask_overlay(image, classes // 8, names)
    many = overlays.mask_overlay(image, classes, names)
    assert len(many) > len(few) > 512
    assert all((many[512:] == colour).all(-1).any() for colour in overlays.palette(16)[1:])


def test_a_box_overlay_draws_along_the_pixels_that_the_box_covers():
    boxes = np.array([[4, 8, 12, 24], [0, 0, 30, 30], [0, 0, 0, 0]], np.float32)
    image = np.full((32, 32, 1), 60, np.uint8)
    found = overlays.box_overlay(image, boxes, np.array([1, 2, -1]), np.array([0.9, 0.2, 0.0]), CLASSES)
    k, orange = 16, overlays.palette(2)[1]
    assert found.shape == (512, 512, 3)
    for y, x in ((8 * k, 8 * k + 2), (8 * k, 24 * k - 3), (12 * k - 3, 16 * k)):
        assert (found[y, x] == orange).all()
    assert (found[8 * k, [8 * k, 24 * k - 1]] == 255).all()
    assert (found[8 * k, [8 * k - 1, 8 * k + 5, 24 * k]] == 60).all()
    tag = found[4 * k - 19 : 4 * k, 8 * k : 8 * k + 60]
    assert (tag == orange).all(-1).mean() > 0.4
    assert (tag.max(-1) < 60).any()
    true = overlays.box_overlay(np.zeros((600, 800, 3), np.uint8), boxes, np.array([1, 2, -1]), None, CLASSES)
    assert true.shape == (600, 800, 3)
