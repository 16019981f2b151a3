"""Cached features: equal to those computed in every step, and reused only if nothing that matters has changed."""

import dataclasses
import multiprocessing
import os
import re
import time

import jax
import numpy as np
import pytest

from tests.strategies.case import Case, make_config
from tljax import config as schema
from tljax.config import AugmentConfig, CacheConfig
from tljax.data import Split
from tljax.distributed.mesh import DeviceMesh
from tljax.errors import UserError
from tljax.features import feature_cache
from tljax.features.cache_plan import CachePlan
from tljax.features.feature_cache import FeatureCache
from tljax.features.frozen_network import FROZEN_STAGES, apply_frozen
from tljax.run.experiment import prepare
from tljax.run.workdir import config_hash
from tljax.storage import array_cache
from tljax.storage.array_cache import ArrayCache
from tljax.strategies import PRESETS
from tljax.train.callbacks import ProgressReporter

SHAPES = {"a/b": jax.ShapeDtypeStruct((3, 2), np.float32), "c": jax.ShapeDtypeStruct((3,), jax.numpy.bfloat16)}
# Tested daily: one preset for each kind of cached network: frozen stages, teachers, and the source network.
DAILY = ("feature_extraction", "layers", "micro", "distillation", "fitnets", "delta")


class SilentReporter(ProgressReporter):
    """A progress reporter that ignores everything; unlike a mock it has only the methods of the protocol."""


@pytest.mark.parametrize("preset", [pytest.param(p, marks=[pytest.mark.deep] * (p not in DAILY)) for p in PRESETS])
def test_preset_trains_the_same_with_cache(tmp_path, preset):
    settings = {"optim.lr": 0.01, "strategy.neurons.layers": ("stage2/.*",)}
    cached_case = Case.make(make_config(tmp_path, preset, "vgg", **settings, **{"cache.storage": "memory"}))
    case = Case.make(make_config(tmp_path, preset, "vgg", **settings))
    for cached_plan, plan in zip(cached_case.plans, case.plans, strict=True):
        in_cached_plan = (*cached_plan.cache_plan.cached, *cached_plan.spec.networks)
        assert {network.name for network in plan.spec.networks} == {network.name for network in in_cached_plan}
        assert bool(cached_plan.frozen_stages) == (plan.cache_plan.reason != CachePlan.reason)
        assert cached_plan.cache_plan.recomputed == plan.cache_plan.cached == ()
        if not cached_plan.cache_plan.cached:
            assert cached_plan.spec == plan.spec
            continue
        _, cached_metrics = cached_case.run(cached_plan, 2)
        _, metrics = case.run(plan, 2)
        for name in ("loss", "terms"):
            np.testing.assert_allclose(
                [m[name] for m in cached_metrics], [m[name] for m in metrics], rtol=1e-5, atol=1e-6
            )


def make_cache(experiment, **changes):
    config = dataclasses.replace(experiment.config, cache=CacheConfig(storage="disk"))
    return FeatureCache(dataclasses.replace(config, **changes), experiment.predictor.mesh, SilentReporter())


@pytest.fixture(scope="module")
def frozen(tmp_path_factory):
    """Return the experiment of a feature extraction, the variables of its frozen stages, and their network."""
    case = Case.make(make_config(tmp_path_factory.mktemp("net"), "feature_extraction", "resnet"))
    (plan,) = case.plans
    (network,) = plan.spec.networks
    return case.experiment, network.variables({}, case.variables), network


def test_cache_is_reused_only_for_equal_inputs(frozen, tmp_path, monkeypatch):
    monkeypatch.setenv("TLJAX_CACHE", str(tmp_path))
    experiment, variables, network = frozen
    split = experiment.data.valid.select(np.arange(5))

    def is_reused(network=network, variables=variables, split=split, views=0, **changes):
        cache = make_cache(experiment, **changes)
        cache.get(network, variables, split, "", views)
        return cache.record[0]["seconds"] == 0

    assert not is_reused()
    assert is_reused()
    path = next(iter(variables))
    images = split.images.copy()
    images[0, 0, 0] ^= 1
    small_input = dataclasses.replace(network.preprocess, size=9)
    changes_by_name = {
        "variables": {"variables": variables | {path: variables[path] + 1e-3}},
        "images": {"split": Split(images, split.labels)},
        "order": {"split": split.select(np.array([1, 0, 2, 3, 4]))},
        "preprocess": {"network": dataclasses.replace(network, preprocess=small_input)},
        "dtype": {"network": dataclasses.replace(network, dtype="bfloat16")},
        "pooling": {"network": dataclasses.replace(network, pool_to=None)},
        "views": {"views": 2, "augment": AugmentConfig(flip=True)},
        "augmentation": {"views": 2, "augment": AugmentConfig(crop_padding=1)},
        "seed": {"views": 2, "augment": AugmentConfig(crop_padding=1), "seed": 5},
    }
    for name, changes in changes_by_name.items():
        assert not is_reused(**changes), name
        assert is_reused(**changes), name
    assert is_reused()
    monkeypatch.setattr(feature_cache, "source_digest", lambda modules: "digest of other source code")
    assert not is_reused()


def test_features_are_in_order_of_images(frozen):
    experiment, variables, network = frozen
    split = experiment.data.valid.select(np.arange(11))
    cache = make_cache(experiment, cache=CacheConfig(storage="none"))
    (features,) = cache.get(network, variables, split, "").values()
    for i in (0, 4, 10):
        (expected,) = apply_frozen(network, variables, split.images[i : i + 1]).values()
        np.testing.assert_allclose(features[i], expected[0], rtol=1e-5, atol=1e-6)


def test_views_differ_and_are_concatenated(frozen):
    experiment, variables, network = frozen
    split = experiment.data.valid.select(np.arange(7))
    cache = make_cache(experiment, augment=AugmentConfig(crop_padding=2), cache=CacheConfig(storage="none"))
    (views,) = cache.get(network, variables, split, "", 3).values()
    (plain,) = cache.get(network, variables, split, "").values()
    assert views.shape == (21, *plain.shape[1:])
    by_view = views.reshape(3, 7, -1)
    for a, b in ((by_view[0], by_view[1]), (by_view[1], by_view[2]), (by_view[0], plain.reshape(7, -1))):
        assert (np.abs(a - b).max(1) > 1e-4).sum() >= 5


def fill_ones(out, value=1.0):
    for x in out.values():
        x[...] = value


@pytest.mark.parametrize("storage", ["disk", "memory"])
def test_array_cache_computes_once_and_drops_oldest(tmp_path, storage, monkeypatch):
    monkeypatch.setattr(array_cache, "_memory", {})
    store = ArrayCache(CacheConfig(storage=storage, max_gb=70e-9), tmp_path / "new")
    calls = []

    def fill(out):
        calls.append(1)
        fill_ones(out, len(calls))

    first = store.get({"k": 1}, SHAPES, fill)
    assert not first.reused
    second = store.get({"k": 1}, SHAPES, fill)
    assert second.reused
    assert calls == [1]
    for name, shape in SHAPES.items():
        assert second.arrays[name].dtype == shape.dtype
        np.testing.assert_array_equal(np.asarray(second.arrays[name], np.float32), np.ones(shape.shape, np.float32))
        with pytest.raises(ValueError, match="read-only"):
            second.arrays[name][...] = 2
    time.sleep(0.02)
    store.get({"k": 2}, SHAPES, fill)  # there is space for both
    assert store.get({"k": 1}, SHAPES, fill).reused
    time.sleep(0.02)
    store.get({"k": 3}, SHAPES, fill)  # replaces the second, the least recently used
    assert store.get({"k": 1}, SHAPES, fill).reused
    assert not store.get({"k": 2}, SHAPES, fill).reused
    np.testing.assert_array_equal(first.arrays["a/b"], 1)  # arrays in use stay readable after their files are deleted


def test_array_cache_recomputes_damaged_entry(tmp_path):
    store = ArrayCache(CacheConfig(), tmp_path)

    def interrupted_fill(out):
        next(iter(out.values()))[...] = 5
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.get({"k": 1}, SHAPES, interrupted_fill)
    assert not store.get({"k": 1}, SHAPES, fill_ones).reused
    folder = tmp_path / array_cache.key_digest({"k": 1})
    for damage in (lambda: (folder / "1").write_bytes(b""), lambda: (folder / "about.json").write_text("{")):
        damage()
        entry = store.get({"k": 1}, SHAPES, fill_ones)
        assert not entry.reused
        np.testing.assert_array_equal(entry.arrays["a/b"], 1)
    # A folder that a killed process left behind.
    (tmp_path / f"{array_cache.key_digest({'k': 9})}.part").mkdir()
    assert not store.get({"k": 9}, SHAPES, fill_ones).reused


def test_array_cache_uses_memory_without_writable_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(array_cache, "_memory", {})
    (tmp_path / "file").write_text("not a folder")
    entry = ArrayCache(CacheConfig(), tmp_path / "file" / "folder").get({"k": 1}, SHAPES, fill_ones)
    assert (entry.storage, entry.reused) == ("memory", False)


def _get_in_process(folder, queue):
    def slow_fill(out):
        time.sleep(1.0)
        fill_ones(out, os.getpid())

    entry = ArrayCache(CacheConfig(), folder).get({"k": 1}, SHAPES, slow_fill)
    queue.put((entry.reused, float(entry.arrays["a/b"].max()), float(entry.arrays["a/b"].min())))


def test_array_cache_is_filled_by_one_of_two_processes(tmp_path):
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    processes = [context.Process(target=_get_in_process, args=(tmp_path, queue)) for _ in range(2)]
    for process in processes:
        process.start()
    results = [queue.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert sorted(reused for reused, _, _ in results) == [False, True]
    assert len({value for _, *values in results for value in values}) == 1


def make_cache_plan(tmp_path, **settings):
    config = make_config(tmp_path, "feature_extraction", "resnet", **{"cache.storage": "disk"} | settings)
    return prepare(config).plans[0].cache_plan


def test_cache_plan_depends_on_size_and_augmentation(tmp_path):
    plan = make_cache_plan(tmp_path)
    assert [network.name for network in plan.cached] == [FROZEN_STAGES]
    assert plan.cached_valid is not None
    train_bytes = plan.cached_bytes
    assert train_bytes > 0
    assert plan.cached_valid_bytes > 0
    assert make_cache_plan(tmp_path, **{"cache.max_gb": train_bytes / 1e9}).cached_valid is None
    too_large = make_cache_plan(tmp_path, **{"cache.max_gb": (train_bytes - 1) / 1e9})
    assert "more than cache.max_gb leaves" in too_large.reason
    augmented = make_cache_plan(tmp_path, **{"augment.flip": True})
    assert (augmented.cached, augmented.cached_valid) == ((), plan.cached_valid)
    assert "cache.num_views would cache some" in augmented.reason
    views = make_cache_plan(tmp_path, **{"augment.flip": True, "cache.num_views": 3})
    assert (views.cached_bytes, views.num_views) == (3 * train_bytes, 3)
    for settings in ({"cache.storage": "none"}, {"cache.max_gb": train_bytes / 1e9}):
        with pytest.raises(UserError, match=re.escape("cache.num_views=3 takes")):
            make_cache_plan(tmp_path, **{"augment.flip": True, "cache.num_views": 3} | settings)


def test_teachers_are_not_cached_with_augmentation(tmp_path):
    # The student receives images augmented in every step, and teachers must receive the same ones.
    settings = {"cache.storage": "memory", "augment.flip": True, "cache.num_views": 3}
    (plan,) = prepare(make_config(tmp_path, "distillation", "resnet", **settings)).plans
    assert (plan.cache_plan.cached, plan.cache_plan.num_views, len(plan.spec.networks)) == ((), 0, 1)


def test_cached_features_are_pooled_only_for_the_head(tmp_path):
    (network,) = make_cache_plan(tmp_path).cached
    assert network.pool_to is not None
    # The next stage trains and needs whole feature maps.
    config = make_config(tmp_path, "layers", "resnet", **{"cache.storage": "disk", "strategy.layers": ("stage2/.*",)})
    (network,) = prepare(config).plans[0].cache_plan.cached
    assert network.pool_to is None
    assert network.maps == (("stage1", "stage1"),)


LOSSES = """
from tljax.losses import loss

@loss()
def undeclared(outputs, batch, references, hparams):
    return outputs["maps"]["stage1"].mean()

@loss("maps")
def declared(outputs, batch, references, hparams):
    return outputs["maps"]["stage1"].mean()
"""


def test_loss_must_declare_that_it_reads_features(tmp_path):
    path = tmp_path / "losses.py"
    path.write_text(LOSSES)

    def make_case(name):
        settings = {"strategy.losses": (("cross_entropy", 1.0), (f"{path}:{name}", 0.1)), "cache.storage": "memory"}
        return Case.make(make_config(tmp_path, "feature_extraction", "resnet", **settings))

    case = make_case("undeclared")
    with pytest.raises(UserError, match=re.escape('@loss("maps")')):
        case.run(case.plans[0])
    case = make_case("declared")
    (plan,) = case.plans
    (network,) = plan.cache_plan.cached
    assert [stage for stage, _ in network.maps] == list(plan.frozen_stages)
    case.run(plan)


def test_storage_of_features_does_not_change_config_hash():
    config = schema.Config()
    for storage in ("memory", "none"):
        other = dataclasses.replace(config, cache=CacheConfig(storage=storage, max_gb=1.0))
        assert config_hash(other) == config_hash(config)
    views = dataclasses.replace(config, cache=CacheConfig(num_views=2))
    assert config_hash(views) != config_hash(config)


def test_mesh_rounds_up_to_number_of_devices():
    assert DeviceMesh(8).round_up(9) % DeviceMesh(8).num_devices == 0
