"""Single training steps of small networks: random keys, gradient accumulation, finiteness and averaged weights."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.strategies.case import Case, make_config, step_hparams
from tljax.train.step import make_train_step

DROPOUT = {"model.dropout": 0.5, "optim.name": "sgd"}


def take_step(case, plan, batch, state=None, **hparams):
    """Take a compiled step from a state, by default the initial one; return the next state and the metrics."""
    inputs = case.step_inputs(plan)
    if state is None:
        state = case.init_state(plan, inputs)
    return make_train_step(plan.spec)(state, inputs, batch, step_hparams(plan) | hparams, jax.random.key(0))


def test_random_key_depends_on_step_number(tmp_path):
    case = Case.make(make_config(tmp_path, "feature_extraction", "vgg", **DROPOUT))
    (plan,) = case.plans
    batch = case.batch(plan)
    zero_lr = {"lr": np.float32(0)}
    state, first = take_step(case, plan, batch, **zero_lr)
    _, second = take_step(case, plan, batch, state, **zero_lr)
    _, repeated = take_step(case, plan, batch, **zero_lr)
    # With a learning rate of 0 only the dropped units can differ.
    assert first["loss"] == repeated["loss"]
    assert first["loss"] != second["loss"]


def test_frozen_stage_has_no_dropout(tmp_path):
    def losses(trainable):
        # The rate grows to the last block: the first stage drops no branches, the second half of them.
        settings = {"model.options": {"depths": (1, 1), "widths": (4, 4), "drop_path": 0.5}}
        settings["strategy.layers"] = (f"{trainable}/.*",)
        case = Case.make(make_config(tmp_path, "layers", "resnet", **settings))
        (plan,) = case.plans
        inputs = case.step_inputs(plan)
        batch = case.batch(plan)
        state = case.init_state(plan, inputs)
        step = jax.jit(make_train_step(plan.spec).__wrapped__)
        keys = [jax.random.key(k) for k in range(4)]
        return {float(step(state, inputs, batch, step_hparams(plan), key)[1]["loss"]) for key in keys}

    assert len(losses("stage1")) == 1
    assert len(losses("stage2")) > 1


def test_accumulated_gradients_equal_whole_batch(tmp_path):
    def params_and_metrics(parts):
        settings = {"optim.name": "sgd", "train.grad_accum_steps": parts}
        case = Case.make(make_config(tmp_path, "full", "vgg", **settings))
        (plan,) = case.plans
        assert plan.spec.grad_accum_steps == parts
        state, metrics = take_step(case, plan, case.batch(plan))
        return state.params, metrics

    params, metrics = params_and_metrics(1)
    accumulated_params, accumulated_metrics = params_and_metrics(4)
    for name in ("loss", "correct", "terms"):
        np.testing.assert_allclose(metrics[name], accumulated_metrics[name], rtol=1e-5)
    for path in params:
        np.testing.assert_allclose(accumulated_params[path], params[path], rtol=1e-5, atol=1e-6)


def test_finite_checks_the_update(tmp_path):
    case = Case.make(make_config(tmp_path, "feature_extraction", "vgg", **{"optim.name": "sgd"}))
    (plan,) = case.plans
    _, metrics = take_step(case, plan, case.batch(plan), lr=np.float32(np.inf))
    assert np.isfinite(metrics["loss"])
    assert not metrics["finite"]


def test_ema_decay_grows_over_first_steps(tmp_path):
    settings = {"strategy.ema_decay": 0.9, "optim.lr": 0.1}
    case = Case.make(make_config(tmp_path, "fixmatch", "vgg", **settings))
    (plan,) = case.plans
    state, _ = take_step(case, plan, case.batch(plan))
    first = {path: np.array(x) for path, x in state.params.items()}
    # The first step has weight 1 in the average, the second 1/2; from the tenth on the weight is 1/10.
    np.testing.assert_array_equal(np.array(state.ema["stem/conv1/kernel"]), first["stem/conv1/kernel"])
    state, _ = take_step(case, plan, case.batch(plan), state)
    second = {path: np.array(x) for path, x in state.params.items()}
    for path in first:
        np.testing.assert_allclose(state.ema[path], (first[path] + second[path]) / 2, rtol=1e-5, atol=1e-7)
    average = {path: np.array(x) for path, x in state.ema.items()}
    state, _ = take_step(case, plan, case.batch(plan), state._replace(step=jnp.int32(50)))
    for path, new in state.params.items():
        np.testing.assert_allclose(state.ema[path], 0.9 * average[path] + 0.1 * new, rtol=1e-5, atol=1e-7)
