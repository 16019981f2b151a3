"""What is computed once is what every step would have computed, and is never taken for anything else."""

import dataclasses
import multiprocessing
import os
import re
import time

import jax
import numpy as np
import pytest

from tests.conftest import Silent
from tests.strategies.case import Case, config_of
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
from tljax.storage import array_cache as storing
from tljax.storage.array_cache import ArrayCache
from tljax.strategies import PRESETS

SHAPES = {"a/b": jax.ShapeDtypeStruct((3, 2), np.float32), "c": jax.ShapeDtypeStruct((3,), jax.numpy.bfloat16)}


# Every day, one preset of each kind of network that is cached: frozen stages, teachers, and the source.
EVERYDAY = ("feature_extraction", "layers", "micro", "distillation", "fitnets", "delta")


@pytest.mark.parametrize("preset", [pytest.param(p, marks=[pytest.mark.deep] * (p not in EVERYDAY)) for p in PRESETS])
def test_every_preset_learns_the_same_with_and_without(tmp_path, preset):
    settings = {"optim.lr": 0.01, "strategy.neurons.layers": ("stage2/.*",)}
    kept = Case.make(config_of(tmp_path, preset, "vgg", **settings, **{"cache.storage": "memory"}))
    again = Case.make(config_of(tmp_path, preset, "vgg", **settings))
    for once, every in zip(kept.plans, again.plans, strict=True):
        assert {n.name for n in every.spec.networks} == {n.name for n in (*once.cache_plan.cached, *once.spec.networks)}
        assert bool(once.frozen_stages) == (every.cache_plan.reason != CachePlan.reason)
        assert once.cache_plan.recomputed == every.cache_plan.cached == ()
        if not once.cache_plan.cached:  # the same program, to the letter
            assert once.spec == every.spec
            continue
        (_, a), (_, b) = kept.run(once, 2), again.run(every, 2)
        for name in ("loss", "terms"):
            np.testing.assert_allclose([m[name] for m in a], [m[name] for m in b], rtol=1e-5, atol=1e-6)


def keeper_of(run, **changes):
    config = dataclasses.replace(run.config, cache=CacheConfig(storage="disk"))
    return FeatureCache(dataclasses.replace(config, **changes), run.predictor.mesh, Silent())


@pytest.fixture(scope="module")
def frozen(tmp_path_factory):
    """A prepared feature extraction, its leaves, and the network of its frozen stages."""
    case = Case.make(config_of(tmp_path_factory.mktemp("net"), "feature_extraction", "resnet"))
    (plan,) = case.plans
    (network,) = plan.spec.networks
    return case.prepared, network.variables({}, case.leaves), network


def test_only_the_same_of_everything_is_taken_again(frozen, tmp_path, monkeypatch):
    monkeypatch.setenv("TLJAX_CACHE", str(tmp_path))
    run, leaves, network = frozen
    split = run.data.valid.select(np.arange(5))

    def reused(network=network, leaves=leaves, split=split, views=0, **changes):
        keeper = keeper_of(run, **changes)
        keeper.get(network, leaves, split, "", views)
        return keeper.record[0]["seconds"] == 0

    assert not reused()
    assert reused()
    path = next(iter(leaves))
    images = split.images.copy()
    images[0, 0, 0] ^= 1
    others = {
        "leaves": {"leaves": leaves | {path: leaves[path] + 1e-3}},
        "images": {"split": Split(images, split.labels)},
        "order": {"split": split.select(np.array([1, 0, 2, 3, 4]))},
        "preprocess": {
            "network": dataclasses.replace(
                network,
                preprocess=run.predictor.preprocess.__class__(**{**dataclasses.asdict(network.preprocess), "size": 9}),
            )
        },
        "dtype": {"network": dataclasses.replace(network, dtype="bfloat16")},
        "grid": {"network": dataclasses.replace(network, pool_to=None)},
        "views": {"views": 2, "augment": AugmentConfig(flip=True)},
        "augmentation": {"views": 2, "augment": AugmentConfig(crop_padding=1)},
        "seed": {"views": 2, "augment": AugmentConfig(crop_padding=1), "seed": 5},
    }
    for name, change in others.items():
        assert not reused(**change), name
        assert reused(**change), name
    assert reused()
    monkeypatch.setattr(feature_cache, "source_digest", lambda modules: "of another version of the code")
    assert not reused()


def test_rows_are_those_of_the_pictures_in_their_order(frozen):
    run, leaves, network = frozen
    split = run.data.valid.select(np.arange(11))
    (kept,) = keeper_of(run, cache=CacheConfig(storage="none")).get(network, leaves, split, "").values()
    for i in (0, 4, 10):
        (expected,) = apply_frozen(network, leaves, split.images[i : i + 1]).values()
        np.testing.assert_allclose(kept[i], expected[0], rtol=1e-5, atol=1e-6)


def test_views_are_drawn_apart_and_stand_one_after_another(frozen):
    run, leaves, network = frozen
    split, augment = run.data.valid.select(np.arange(7)), AugmentConfig(crop_padding=2)
    keeper = keeper_of(run, augment=augment, cache=CacheConfig(storage="none"))
    (name,) = (views := keeper.get(network, leaves, split, "", 3))
    (plain,) = keeper.get(network, leaves, split, "").values()
    assert views[name].shape == (21, *plain.shape[1:])
    drawn = views[name].reshape(3, 7, -1)
    for a, b in ((drawn[0], drawn[1]), (drawn[1], drawn[2]), (drawn[0], plain.reshape(7, -1))):
        assert (np.abs(a - b).max(1) > 1e-4).sum() >= 5


def filled(out, value=1.0):
    for x in out.values():
        x[...] = value


@pytest.mark.parametrize("where", ["disk", "memory"])
def test_a_store_computes_once_and_forgets_the_oldest(tmp_path, where, monkeypatch):
    monkeypatch.setattr(storing, "_memory", {})
    store, calls = ArrayCache(CacheConfig(storage=where, max_gb=70e-9), tmp_path / "new"), []

    def fill(out):
        calls.append(1)
        filled(out, len(calls))

    first = store.get({"k": 1}, SHAPES, fill)
    assert not first.reused
    again = store.get({"k": 1}, SHAPES, fill)
    assert again.reused
    assert calls == [1]
    for name, shape in SHAPES.items():
        assert again.arrays[name].dtype == shape.dtype
        np.testing.assert_array_equal(np.asarray(again.arrays[name], np.float32), np.ones(shape.shape, np.float32))
        with pytest.raises(ValueError, match="read-only"):
            again.arrays[name][...] = 2
    time.sleep(0.02)
    store.get({"k": 2}, SHAPES, fill)  # both fit
    assert store.get({"k": 1}, SHAPES, fill).reused
    time.sleep(0.02)
    store.get({"k": 3}, SHAPES, fill)  # the second was not used for longest
    assert store.get({"k": 1}, SHAPES, fill).reused
    assert not store.get({"k": 2}, SHAPES, fill).reused
    np.testing.assert_array_equal(first.arrays["a/b"], 1)  # what is deleted stays readable for whoever has it


def test_what_is_half_written_or_damaged_is_computed_again(tmp_path):
    store = ArrayCache(CacheConfig(), tmp_path)

    def dies(out):
        next(iter(out.values()))[...] = 5
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.get({"k": 1}, SHAPES, dies)
    assert not store.get({"k": 1}, SHAPES, filled).reused
    place = tmp_path / storing.key_digest({"k": 1})
    for damage in (lambda: (place / "1").write_bytes(b""), lambda: (place / "about.json").write_text("{")):
        damage()
        entry = store.get({"k": 1}, SHAPES, filled)
        assert not entry.reused
        np.testing.assert_array_equal(entry.arrays["a/b"], 1)
    # A folder that a killed process left behind.
    (tmp_path / f"{storing.key_digest({'k': 9})}.part").mkdir()
    assert not store.get({"k": 9}, SHAPES, filled).reused


def test_where_no_file_can_be_made_memory_keeps_it(tmp_path, monkeypatch):
    monkeypatch.setattr(storing, "_memory", {})
    (tmp_path / "file").write_text("in the way")
    entry = ArrayCache(CacheConfig(), tmp_path / "file" / "folder").get({"k": 1}, SHAPES, filled)
    assert (entry.storage, entry.reused) == ("memory", False)


def _fills(folder, queue):
    def slowly(out):
        time.sleep(1.0)
        filled(out, os.getpid())

    entry = ArrayCache(CacheConfig(), folder).get({"k": 1}, SHAPES, slowly)
    queue.put((entry.reused, float(entry.arrays["a/b"].max()), float(entry.arrays["a/b"].min())))


def test_two_processes_fill_and_read_the_same_one(tmp_path):
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    processes = [context.Process(target=_fills, args=(tmp_path, queue)) for _ in range(2)]
    for process in processes:
        process.start()
    found = [queue.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert sorted(reused for reused, _, _ in found) == [False, True]
    assert len({value for _, *values in found for value in values}) == 1


def test_the_budget_and_augmentation_decide(tmp_path):
    def keeping(**settings):
        config = config_of(tmp_path, "feature_extraction", "resnet", **{"cache.storage": "disk"} | settings)
        return prepare(config).plans[0].cache_plan

    whole = keeping()
    assert [n.name for n in whole.cached] == [FROZEN_STAGES]
    assert whole.cached_valid is not None
    train, valid = whole.cached_bytes, whole.cached_valid_bytes
    assert train > 0 < valid
    assert keeping(**{"cache.max_gb": train / 1e9}).cached_valid is None
    assert "more than cache.max_gb leaves" in keeping(**{"cache.max_gb": (train - 1) / 1e9}).reason
    drawn = keeping(**{"augment.flip": True})
    assert (drawn.cached, drawn.cached_valid) == ((), whole.cached_valid)
    assert "cache.num_views would keep some" in drawn.reason
    views = keeping(**{"augment.flip": True, "cache.num_views": 3})
    assert (views.cached_bytes, views.num_views) == (3 * train, 3)
    for more in ({"cache.storage": "none"}, {"cache.max_gb": train / 1e9}):
        with pytest.raises(UserError, match=re.escape("cache.num_views=3 takes")):
            keeping(**{"augment.flip": True, "cache.num_views": 3} | more)
    # A student that sees pictures drawn anew has teachers that see the same.
    settings = {"cache.storage": "memory", "augment.flip": True, "cache.num_views": 3}
    (plan,) = prepare(config_of(tmp_path, "distillation", "resnet", **settings)).plans
    assert (plan.cache_plan.cached, plan.cache_plan.num_views, len(plan.spec.networks)) == ((), 0, 1)
    # Where heads pool, what is kept is pooled; where a next stage learns, it goes on from the whole map.
    (network,) = whole.cache_plan.cached
    assert network.pool_to is not None
    config = config_of(tmp_path, "layers", "resnet", **{"cache.storage": "disk", "strategy.layers": ("stage2/.*",)})
    (network,) = prepare(config).plans[0].cache_plan.cached
    assert network.pool_to is None
    assert network.maps == (("stage1", "stage1"),)


def test_an_objective_that_reads_maps_must_say_so(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(
        "from tljax.losses import loss\n"
        "@loss()\n"
        "def silent(outputs, batch, references, hparams):\n"
        "    return outputs['maps']['stage1'].mean()\n"
        "@loss('maps')\n"
        "def honest(outputs, batch, references, hparams):\n"
        "    return outputs['maps']['stage1'].mean()\n"
    )
    for name, words in (("silent", '@loss("maps")'), ("honest", None)):
        objectives = (("cross_entropy", 1.0), (f"{path}:{name}", 0.1))
        settings = {"strategy.losses": objectives, "cache.storage": "memory"}
        case = Case.make(config_of(tmp_path, "feature_extraction", "resnet", **settings))
        (plan,) = case.plans
        if words is None:
            (network,) = plan.cache_plan.cached
            assert [stage for stage, _ in network.maps] == list(plan.frozen_stages)
            case.run(plan)
        else:
            with pytest.raises(UserError, match=re.escape(words)):
                case.run(plan)


def test_the_key_and_the_result_do_not_hang_on_where_features_are_kept():
    config = schema.Config()
    for where in ("memory", "none"):
        other = dataclasses.replace(config, cache=CacheConfig(storage=where, max_gb=1.0))
        assert config_hash(other) == config_hash(config)
    views = dataclasses.replace(config, cache=CacheConfig(num_views=2))
    assert config_hash(views) != config_hash(config)
    assert DeviceMesh(8).round_up(9) % DeviceMesh(8).num_devices == 0
