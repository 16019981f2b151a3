"""All presets on masks and boxes: caching does not change a step, and only trainable variables change."""

import numpy as np
import pytest

from tests.strategies.case import Case, make_spatial_config
from tljax.strategies import PRESETS

# The task changes the losses of labels, soft labels and unlabelled images. Tested daily: one preset with each of them.
DAILY = {
    "unet": ("feature_extraction", "lwf"),
    "detector": ("fixmatch",),
}


def _cases():
    """Return parameters (head, presets, cached); caching is tested daily with one head."""
    for head, presets in DAILY.items():
        yield pytest.param(head, presets, head == "unet", id=head)
        for preset in PRESETS:
            if preset not in presets or head != "unet":
                yield pytest.param(head, [preset], True, id=f"{head}-{preset}", marks=pytest.mark.deep)


@pytest.mark.parametrize(("head", "presets", "cached"), list(_cases()))
def test_preset_trains_spatial_task(tmp_path, head, presets, cached):
    # Equal specs are one program: training the head alone, for instance, is the first phase of five presets.
    checked_specs = set()
    for preset in presets:
        _check_preset(tmp_path, head, preset, cached, checked_specs)


def _check_preset(tmp_path, head, preset, cached, checked_specs):
    """Take a step of each phase whose spec is not checked yet, and the same step with cached features."""
    settings = {"optim.lr": 0.01, "strategy.threshold": 0.1}
    cached_case = Case.make(make_spatial_config(tmp_path, preset, head, **settings, **{"cache.storage": "memory"}))
    case = Case.make(make_spatial_config(tmp_path, preset, head, **settings))
    for cached_plan, plan in zip(cached_case.plans, case.plans, strict=True):
        if plan.spec in checked_specs:
            continue
        checked_specs.add(plan.spec)
        state, step_metrics = case.run(plan, compiled=True)
        assert all(m["finite"] for m in step_metrics)
        assert all(0 <= m["correct"] <= len(case.batch(plan)["label"]) for m in step_metrics)
        assert all(term > 0 for m in step_metrics for term in m["terms"]), (plan.phase.losses, step_metrics)
        index = case.channel_index(plan)
        frozen = plan.partition(case.variables, index)[2]
        after = plan.combine(state.params | state.batch_stats, frozen, index)
        changed = {path for path, x in after.items() if not np.array_equal(x, case.variables[path])}
        assert changed <= {*plan.trainable, *plan.batch_stats}
        assert {path.split("/")[0] for path in changed} == {path.split("/")[0] for path in plan.trainable}
        if cached and cached_plan.cache_plan.cached:
            _, cached_metrics = cached_case.run(cached_plan, compiled=True)
            for name in ("loss", "terms"):
                np.testing.assert_allclose(cached_metrics[0][name], step_metrics[0][name], rtol=1e-5, atol=1e-6)
