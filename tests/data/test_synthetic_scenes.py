"""Synthetic scenes: labels match the pixels, and splits share no source images."""

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


def expected_box(mask):
    ys, xs = np.nonzero(mask)
    return [ys.min(), xs.min(), ys.max() + 1, xs.max() + 1]


def render(count=40, **options):
    options = synthetic_scenes.Options(**options)
    pool = synthetic_scenes.object_pools(options)["train"]
    return [synthetic_scenes.render_scene(pool, options, "train", i) for i in range(count)]


def test_masks_and_boxes_belong_to_the_same_scenes():
    masks = load("segmentation")
    boxes = load("detection")
    assert masks.classes == ("background", *boxes.classes) == ("background", *"0123456789")
    for split in ("train", "valid", "test"):
        a, b = getattr(masks, split), getattr(boxes, split)
        assert (a.images == b.images).all()
        assert a.images.shape == (SMALL[split], 64, 64, 3)
        for mask, labels in zip(a.labels, b.labels, strict=True):
            assert set(mask.ravel()) - {0} == set(labels[labels >= 0] + 1)


def test_boxes_are_tight_around_visible_pixels():
    for scene in render(overlap=0.5, objects=(2, 6)):
        assert len(scene.boxes) == len(scene.labels) == scene.instance_map.max() + 1
        for k, box in enumerate(scene.boxes):
            assert box.tolist() == expected_box(scene.instance_map == k)
            assert (scene.mask[scene.instance_map == k] == scene.labels[k] + 1).all()
        assert (scene.mask[scene.instance_map < 0] == 0).all()


def test_splits_have_the_boxes_of_their_scenes_and_padding():
    split = load("detection").train
    expected = render(SMALL["train"])
    for labels, boxes, scene in zip(split.labels, split.boxes, expected, strict=True):
        count = len(scene.labels)
        assert labels.tolist() == [*scene.labels, *[-1] * (4 - count)]
        assert (boxes[:count] == scene.boxes).all()
        assert not boxes[count:].any()


def test_scene_does_not_depend_on_the_number_of_scenes():
    few = load("segmentation")
    many = load("segmentation", train=30, valid=20, test=9)
    for split in SMALL:
        a, b = getattr(few, split), getattr(many, split)
        assert (a.images == b.images[: len(a)]).all()
        assert (a.labels == b.labels[: len(a)]).all()


def test_scenes_are_determined_by_the_seed():
    assert load("detection").train.fingerprint == load("detection").train.fingerprint
    assert load("detection", seed=1).train.fingerprint != load("detection").train.fingerprint
    source = load("segmentation")
    assert len({i.tobytes() for s in SMALL for i in getattr(source, s).images}) == sum(SMALL.values())


def test_splits_share_no_source_images():
    options = synthetic_scenes.Options()
    published = registry.load_source(DataConfig(name="digits"))
    pools = synthetic_scenes.object_pools(options)
    train, valid = (set(pools[s].source_index.tolist()) for s in ("train", "valid"))
    assert not train & valid
    assert train | valid == set(range(len(published.train)))
    for split, pool in pools.items():
        source = published.test if split == "test" else published.train
        assert (pool.images == source.images[pool.source_index, ..., 0]).all()
        assert (pool.labels == source.labels[pool.source_index]).all()
        scene = synthetic_scenes.render_scene(pool, options, split, 3)
        assert (scene.labels == source.labels[scene.source_index]).all()
    contents = {s: {i.tobytes() for i in p.images} for s, p in pools.items()}
    assert not contents["train"] & contents["test"]
    assert not contents["valid"] & contents["test"]


def test_later_objects_hide_at_most_overlap(monkeypatch):
    rendered = []
    render_object = synthetic_scenes._render_object

    def record(*args):
        rendered.append(render_object(*args))
        return rendered[-1]

    monkeypatch.setattr(synthetic_scenes, "_render_object", record)
    hidden = []
    for i in range(30):
        rendered.clear()
        options = synthetic_scenes.Options(objects=(3, 3), overlap=0.3)
        scene = synthetic_scenes.render_scene(synthetic_scenes.object_pools(options)["train"], options, "train", i)
        if len(scene.labels) == 3:
            areas = [np.count_nonzero(coverage >= 0.5) for coverage, _ in rendered]
            hidden += [1 - np.count_nonzero(scene.instance_map == k) / areas[k] for k in range(3)]
    assert 0.1 < max(hidden) <= 0.3 + 1e-9
    assert min(hidden) == 0


def test_without_overlap_no_object_hides_another():
    four = synthetic_scenes.Options(objects=(4, 4), overlap=0.0, scale=(0.3, 0.3))
    one = synthetic_scenes.Options(objects=(1, 1), scale=(0.3, 0.3))
    for i in range(10):
        scene = synthetic_scenes.render_scene(synthetic_scenes.object_pools(four)["train"], four, "train", i)
        alone = synthetic_scenes.render_scene(synthetic_scenes.object_pools(one)["train"], one, "train", i)
        assert len(scene.labels) >= 1
        assert np.count_nonzero(scene.instance_map == 0) == np.count_nonzero(alone.instance_map == 0)


def test_objects_contrast_with_what_they_cover():
    differences = []
    for scene in render(objects=(1, 1), texture=0.0, noise=0.0, contrast=0.4):
        inside = scene.image[scene.instance_map == 0].astype(float)
        outside = scene.image[0, 0] if scene.instance_map[0, 0] < 0 else scene.image[-1, -1]
        differences.append(np.sqrt(np.square(np.median(inside, 0) - outside).mean()) / 255)
    assert min(differences) > 0.25
    assert np.median(differences) > 0.4


def test_gray_scenes_have_one_channel_and_the_given_side():
    split = load("detection", color=False, side=48).test
    assert split.images.shape == (6, 48, 48, 1)
    assert split.boxes.max() <= 48


@pytest.mark.skipif("TLJAX_DATA_DIR" not in os.environ, reason="TLJAX_DATA_DIR is not set")
def test_scenes_of_fashion_mnist():
    source = load("segmentation", items="fashion-mnist")
    assert source.classes[1] == "t-shirt/top"
    assert source.train.labels.max() <= 10
    assert 0.05 < (source.train.labels > 0).mean() < 0.7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trian": 3}, 'scenes has no "trian"; did you mean "train"'),
        ({"train": 0}, "data.options.train must be at least 1"),
        ({"train": "many"}, "data.options.train must be of type int"),
        ({"objects": (3, 2)}, "objects must be two ascending numbers"),
        ({"scale": (0.5, 1.5)}, "scale must be two ascending numbers"),
        ({"items": "letters"}, "data.options.items cannot be 'letters'"),
    ],
)
def test_invalid_options_raise(options, message):
    with pytest.raises(UserError, match=message):
        load("detection", **options)


def test_200_scenes_render_within_two_seconds():
    load("segmentation")  # loads the digits
    start = time.process_time()
    load("segmentation", train=100, valid=50, test=50)
    assert time.process_time() - start < 2
