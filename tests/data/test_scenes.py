"""Scenes: what is said of them is true of their pixels, and nothing of a test picture stands in a training picture."""

import os
import time

import numpy as np
import pytest

from tljax.config import DataConfig
from tljax.data.sources import registry, synthetic_scenes
from tljax.errors import UserError

SMALL = {"train": 12, "valid": 6, "test": 6}


def load(task, **options):
    return registry.load_source(DataConfig(name="scenes", options=SMALL | options), task)


def brute_box(mask):
    ys, xs = np.nonzero(mask)
    return [ys.min(), xs.min(), ys.max() + 1, xs.max() + 1]


def drawn(count=40, **options):
    options = synthetic_scenes.Options(**options)
    group = synthetic_scenes.object_pool(options)["train"]
    return [synthetic_scenes.render_scene(group, options, "train", i) for i in range(count)]


def test_masks_and_boxes_are_of_the_same_scenes():
    masked, boxed = load("segmentation"), load("detection")
    assert masked.classes == ("background", *boxed.classes) == ("background", *"0123456789")
    for split in ("train", "valid", "test"):
        a, b = getattr(masked, split), getattr(boxed, split)
        assert (a.images == b.images).all()
        assert a.images.shape == (SMALL[split], 64, 64, 3)
        for mask, labels in zip(a.labels, b.labels, strict=True):
            assert set(mask.ravel()) - {0} == set(labels[labels >= 0] + 1)


def test_a_box_is_tight_around_the_pixels_that_show_its_object():
    for scene in drawn(overlap=0.5, objects=(2, 6)):
        assert len(scene.boxes) == len(scene.labels) == scene.owner.max() + 1
        for k, box in enumerate(scene.boxes):
            assert box.tolist() == brute_box(scene.owner == k)
            assert (scene.mask[scene.owner == k] == scene.labels[k] + 1).all()
        assert (scene.mask[scene.owner < 0] == 0).all()


def test_boxes_of_the_split_are_those_of_the_scenes_with_padding_behind():
    split, expected = load("detection").train, drawn(SMALL["train"])
    for labels, boxes, scene in zip(split.labels, split.boxes, expected, strict=True):
        count = len(scene.labels)
        assert labels.tolist() == [*scene.labels, *[-1] * (4 - count)]
        assert (boxes[:count] == scene.boxes).all()
        assert not boxes[count:].any()


def test_picture_i_does_not_depend_on_how_many_there_are():
    few, many = load("segmentation"), load("segmentation", train=30, valid=20, test=9)
    for split in SMALL:
        a, b = getattr(few, split), getattr(many, split)
        assert (a.images == b.images[: len(a)]).all()
        assert (a.labels == b.labels[: len(a)]).all()


def test_the_seed_draws_other_scenes_and_the_same_one_the_same():
    assert load("detection").train.fingerprint == load("detection").train.fingerprint
    assert load("detection", seed=1).train.fingerprint != load("detection").train.fingerprint
    everything = load("segmentation")
    assert len({i.tobytes() for s in SMALL for i in getattr(everything, s).images}) == sum(SMALL.values())


def test_no_source_picture_stands_in_two_splits():
    options, published = synthetic_scenes.Options(), registry.load_source(DataConfig(name="digits"))
    groups = synthetic_scenes.object_pool(options)
    train, valid = (set(groups[s].index.tolist()) for s in ("train", "valid"))
    assert not train & valid
    assert train | valid == set(range(len(published.train)))
    for split, group in groups.items():
        whole = published.test if split == "test" else published.train
        assert (group.images == whole.images[group.index, ..., 0]).all()
        assert (group.labels == whole.labels[group.index]).all()
        scene = synthetic_scenes.render_scene(group, options, split, 3)
        assert (scene.labels == whole.labels[scene.sources]).all()
    contents = {s: {i.tobytes() for i in g.images} for s, g in groups.items()}
    assert not contents["train"] & contents["test"]
    assert not contents["valid"] & contents["test"]


def test_later_objects_hide_no_more_than_they_may(monkeypatch):
    rendered = []
    render = synthetic_scenes._render

    def spy(*arguments):
        rendered.append(render(*arguments))
        return rendered[-1]

    monkeypatch.setattr(synthetic_scenes, "_render", spy)
    hidden = []
    for i in range(30):
        rendered.clear()
        options = synthetic_scenes.Options(objects=(3, 3), overlap=0.3)
        scene = synthetic_scenes.render_scene(synthetic_scenes.object_pool(options)["train"], options, "train", i)
        if len(scene.labels) == 3:
            whole = [np.count_nonzero(coverage >= 0.5) for coverage, _ in rendered]
            hidden += [1 - np.count_nonzero(scene.owner == k) / whole[k] for k in range(3)]
    assert 0.1 < max(hidden) <= 0.3 + 1e-9
    assert min(hidden) == 0


def test_without_overlap_no_object_hides_another():
    options = synthetic_scenes.Options(objects=(4, 4), overlap=0.0, scale=(0.3, 0.3))
    for i in range(10):
        scene = synthetic_scenes.render_scene(synthetic_scenes.object_pool(options)["train"], options, "train", i)
        one = synthetic_scenes.Options(objects=(1, 1), scale=(0.3, 0.3))
        alone = synthetic_scenes.render_scene(synthetic_scenes.object_pool(one)["train"], one, "train", i)
        assert len(scene.labels) >= 1
        assert np.count_nonzero(scene.owner == 0) == np.count_nonzero(alone.owner == 0)


def test_objects_stand_out_from_what_they_cover():
    differences = []
    for scene in drawn(objects=(1, 1), texture=0.0, noise=0.0, contrast=0.4):
        inside = scene.image[scene.owner == 0].astype(float)
        outside = scene.image[0, 0] if scene.owner[0, 0] < 0 else scene.image[-1, -1]
        differences.append(np.sqrt(np.square(np.median(inside, 0) - outside).mean()) / 255)
    assert min(differences) > 0.25
    assert np.median(differences) > 0.4


def test_grey_scenes_have_one_channel_and_other_sizes_another_side():
    split = load("detection", color=False, side=48).test
    assert split.images.shape == (6, 48, 48, 1)
    assert split.boxes.max() <= 48


@pytest.mark.skipif("TLJAX_DATA_DIR" not in os.environ, reason="TLJAX_DATA_DIR is unset: the real files are not here")
def test_scenes_of_garments():
    source = load("segmentation", items="fashion-mnist")
    assert source.classes[1] == "t-shirt/top"
    assert source.train.labels.max() <= 10
    assert 0.05 < (source.train.labels > 0).mean() < 0.7


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"trian": 3}, 'scenes has no "trian"; did you mean "train"'),
        ({"train": 0}, "data.options.train must be at least 1"),
        ({"train": "many"}, "data.options.train must be of type int"),
        ({"objects": (3, 2)}, "objects must be two ascending numbers"),
        ({"scale": (0.5, 1.5)}, "scale must be two ascending numbers"),
        ({"items": "letters"}, "data.options.items cannot be 'letters'"),
    ],
)
def test_wrong_options_are_one_sentence(options, words):
    with pytest.raises(UserError, match=words):
        load("detection", **options)


def test_scenes_are_drawn_at_a_thousand_a_few_seconds():
    load("segmentation")  # reads the digits
    start = time.process_time()
    load("segmentation", train=100, valid=50, test=50)
    assert time.process_time() - start < 2
