"""Every preset on masks and on boxes: what is kept changes nothing, what is frozen stays, what learns moves."""

import numpy as np
import pytest

from tests.strategies.case import Case, located_config_of
from tljax.strategies import PRESETS

# What the task of a head changes in a phase is the loss of labels, soft labels and unlabelled images. Every day, one
# preset has each of these.
EVERYDAY = {
    "unet": ("feature_extraction", "lwf"),
    "detector": ("fixmatch",),
}


def _cases():
    """Heads and presets; what caching changes is proven with one head every day."""
    for head, presets in EVERYDAY.items():
        yield pytest.param(head, presets, head == "unet", id=head)
        for preset in PRESETS:
            if preset not in presets or head != "unet":
                yield pytest.param(head, [preset], True, id=f"{head}-{preset}", marks=pytest.mark.deep)


@pytest.mark.parametrize(("head", "presets", "cached"), list(_cases()))
def test_every_preset_works_where_something_is_found(tmp_path, head, presets, cached):
    # Equal specs are one program; the head alone, for instance, is the first phase of five presets.
    proven = set()
    for preset in presets:
        prove(tmp_path, head, preset, cached, proven)


def prove(tmp_path, head, preset, cached, proven):
    """Takes a step of each phase that is not proven yet, and the same step with cached features."""
    settings = {"optim.lr": 0.01, "strategy.threshold": 0.1}
    kept = Case.make(located_config_of(tmp_path, preset, head, **settings, **{"cache.storage": "memory"}))
    again = Case.make(located_config_of(tmp_path, preset, head, **settings))
    for once, every in zip(kept.plans, again.plans, strict=True):
        if every.spec in proven:
            continue
        proven.add(every.spec)
        state, seen = again.run(every, compiled=True)
        assert all(m["finite"] for m in seen)
        assert all(0 <= m["correct"] <= len(again.batch(every)["label"]) for m in seen)
        assert all(term > 0 for m in seen for term in m["terms"]), (every.phase.losses, seen)
        index = again.index(every)
        after = every.combine(state.params | state.batch_stats, every.partition(again.leaves, index)[2], index)
        moved = {path for path, x in after.items() if not np.array_equal(x, again.leaves[path])}
        assert moved <= {*every.trainable, *every.batch_stats}
        assert {path.split("/")[0] for path in moved} == {path.split("/")[0] for path in every.trainable}
        if cached and once.cache_plan.cached:
            _, same = kept.run(once, compiled=True)
            for name in ("loss", "terms"):
                np.testing.assert_allclose(same[0][name], seen[0][name], rtol=1e-5, atol=1e-6)
