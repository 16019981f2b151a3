"""What a single step promises, on small networks: random keys, accumulated gradients, and when it is finite."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.strategies.case import Case, config_of, numbers
from tljax.train.step import make_train_step

DROPOUT = {"model.dropout": 0.5, "optim.name": "sgd"}


def make_step_fn(case, plan, batch, state=None, **changed):
    """Takes one compiled step from a state, or from the start; returns the state after it and the metrics."""
    given = case.given(plan)
    if state is None:
        state = case.start(plan, given)
    return make_train_step(plan.spec)(state, given, batch, numbers(plan) | changed, jax.random.key(0))


def test_steps_draw_anew_and_repeat_by_their_number(tmp_path):
    case = Case.make(config_of(tmp_path, "feature_extraction", "vgg", **DROPOUT))
    (plan,) = case.plans
    batch, still = case.batch(plan), {"lr": np.float32(0)}
    state, first = make_step_fn(case, plan, batch, **still)
    _, second = make_step_fn(case, plan, batch, state, **still)
    _, again = make_step_fn(case, plan, batch, **still)
    # At a rate of zero nothing but the dropped units can differ.
    assert first["loss"] == again["loss"]
    assert first["loss"] != second["loss"]


def test_frozen_stages_draw_nothing(tmp_path):
    def losses(trainable):
        # The rate grows to the last block: the first stage has none, the second drops half of its branches.
        settings = {"model.options": {"depths": (1, 1), "widths": (4, 4), "drop_path": 0.5}}
        settings["strategy.layers"] = (f"{trainable}/.*",)
        case = Case.make(config_of(tmp_path, "layers", "resnet", **settings))
        (plan,) = case.plans
        given, batch = case.given(plan), case.batch(plan)
        state = case.start(plan, given)
        step = jax.jit(make_train_step(plan.spec).__wrapped__)
        return {float(step(state, given, batch, numbers(plan), jax.random.key(k))[1]["loss"]) for k in range(4)}

    assert len(losses("stage1")) == 1
    assert len(losses("stage2")) > 1


def test_accumulated_gradients_are_those_of_the_whole_batch(tmp_path):
    def after(parts):
        case = Case.make(config_of(tmp_path, "full", "vgg", **{"optim.name": "sgd", "train.grad_accum_steps": parts}))
        (plan,) = case.plans
        assert plan.spec.grad_accum_steps == parts
        state, metrics = make_step_fn(case, plan, case.batch(plan))
        return state.params, metrics

    (whole, a), (parts, b) = after(1), after(4)
    for name in ("loss", "correct", "terms"):
        np.testing.assert_allclose(a[name], b[name], rtol=1e-5)
    for path in whole:
        np.testing.assert_allclose(parts[path], whole[path], rtol=1e-5, atol=1e-6)


def test_an_update_that_is_not_finite_is_noticed_though_the_loss_is(tmp_path):
    case = Case.make(config_of(tmp_path, "feature_extraction", "vgg", **{"optim.name": "sgd"}))
    (plan,) = case.plans
    _, metrics = make_step_fn(case, plan, case.batch(plan), lr=np.float32(np.inf))
    assert np.isfinite(metrics["loss"])
    assert not metrics["finite"]


def test_averaged_weights_follow_slowly_and_forget_the_start(tmp_path):
    settings = {"strategy.ema_decay": 0.9, "optim.lr": 0.1}
    case = Case.make(config_of(tmp_path, "fixmatch", "vgg", **settings))
    (plan,) = case.plans
    state, _ = make_step_fn(case, plan, case.batch(plan))
    first = {path: np.array(x) for path, x in state.params.items()}
    # The first step is all of the average, of the second it is half; from the tenth on it is a tenth.
    np.testing.assert_array_equal(*(np.array(x["stem/conv1/kernel"]) for x in (state.ema, first)))
    state, _ = make_step_fn(case, plan, case.batch(plan), state)
    second = {path: np.array(x) for path, x in state.params.items()}
    for path in first:
        np.testing.assert_allclose(state.ema[path], (first[path] + second[path]) / 2, rtol=1e-5, atol=1e-7)
    average = {path: np.array(x) for path, x in state.ema.items()}
    state, _ = make_step_fn(case, plan, case.batch(plan), state._replace(step=jnp.int32(50)))
    for path, new in state.params.items():
        np.testing.assert_allclose(state.ema[path], 0.9 * average[path] + 0.1 * new, rtol=1e-5, atol=1e-7)
