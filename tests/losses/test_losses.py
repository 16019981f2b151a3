"""Losses against reference implementations, in value and gradient, and their properties."""

from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tljax.errors import UserError
from tljax.losses import LOSSES, REQUIREMENTS, Loss, get_loss, loss
from tljax.losses.semi_supervised import pseudo_targets

GOLDEN = Path(__file__).parent.parent / "golden" / "losses.npz"
# Tested in test_pixelwise.py, test_segmentation_losses.py and test_detection_losses.py.
SPATIAL = {"dice", "focal", "lovasz", "boundary_cross_entropy"} | {n for n in LOSSES if "detection" in n}
CLASSIFICATION = sorted(LOSSES.keys() - SPATIAL)
PER_IMAGE = sorted(LOSSES.keys() - {"l2", "l2_sp"} - SPATIAL)
HPARAMS = {
    "label_smoothing": 0.1,
    "temperature": 4.0,
    "threshold": 0.5,
    "distribution_alignment": 0.0,
    "prior": np.array([0.5, 0.3, 0.2], np.float32),
    "progress": 0.0,
    "unlabelled_warmup": 0.0,
}


# Compilation dominates the time of these tests.
jit = partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
)


@cache
def cases():
    """Return {loss: [{outputs, batch, references, hparams, value, grads}]} in float64."""
    by_name = {}
    with np.load(GOLDEN) as arrays:
        for key in arrays:
            case_name, _, path = key.partition(":")
            *parents, last = path.split(".")
            node = by_name.setdefault(case_name, {"batch": {}, "references": {}, "hparams": {}})
            for parent in parents:
                node = node.setdefault(parent, {})
            node[last] = arrays[key]
    for case in by_name.values():
        if teachers := case["references"].get("teachers"):
            case["references"]["teachers"] = tuple(teachers[str(i)] for i in range(len(teachers)))
    return {name: [case for key, case in by_name.items() if key.startswith(f"{name}-")] for name in CLASSIFICATION}


@cache
def compiled(*names):
    """Return a function (outputs, batch, references, hparams) → {loss: (value, gradient)}, in one program."""
    return jit(lambda *arguments: {name: jax.value_and_grad(LOSSES[name])(*arguments) for name in names})


@jit
def values(*arguments):
    return {name: LOSSES[name](*arguments) for name in PER_IMAGE}


def value_and_grad(name, *arguments):
    return compiled(name)(*arguments)[name]


def cast(tree, dtype):
    """Cast the float64 arrays of a tree to `dtype`."""
    return jax.tree.map(lambda x: x.astype(dtype) if x.dtype == np.float64 else x, tree)


def reorder(tree, order):
    """Reorder the images of every array in a tree."""
    return jax.tree.map(lambda x: x[order], tree)


def random_inputs(seed, images=5, teachers=2):
    """Return random outputs, batch and references for the losses in `PER_IMAGE`."""
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return jnp.asarray(2 * rng.standard_normal((images, *shape)), jnp.float32)

    outputs = {name: draw(3) for name in ("logits", "aux1", "source")} | {"maps": {"stage1": draw(4, 3, 2)}}
    outputs |= {"weak": {"logits": draw(3)}, "strong": {"logits": draw(3)}, "hint_stage1": draw(4, 3, 5)}
    references = {
        "teachers": tuple({"logits": draw(3), "maps": {"stage1": draw(2, 5, 5)}} for _ in range(teachers)),
        "source": {"logits": draw(3), "maps": {"stage1": draw(4, 3, 2)}},
        "ema": {"logits": draw(3)},
    }
    return outputs, {"label": jnp.asarray(rng.integers(0, 3, images))}, references


@cache
def results(dtype):
    """Return {loss: [(value, gradient) of each case]}, computed by one program."""
    parts = ("outputs", "batch", "references", "hparams")
    arguments = {name: [[case[part] for part in parts] for case in of_loss] for name, of_loss in cases().items()}

    @jit
    def run(arguments):
        return {name: [jax.value_and_grad(LOSSES[name])(*a) for a in of_loss] for name, of_loss in arguments.items()}

    with jax.enable_x64(dtype == "float64"):
        return run(cast(arguments, dtype))


@pytest.mark.parametrize("name", CLASSIFICATION)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-10), ("float32", 1e-5)])
def test_loss_matches_reference(name, dtype, tolerance):
    assert results(dtype)[name]
    for (value, grads), case in zip(results(dtype)[name], cases()[name], strict=True):
        assert value.shape == ()
        assert value.dtype == dtype or value == 0
        np.testing.assert_allclose(value, case["value"], rtol=tolerance, atol=tolerance * 1e-3)
        assert jax.tree.structure(grads) == jax.tree.structure(case["grads"])
        for grad, expected in zip(jax.tree.leaves(grads), jax.tree.leaves(case["grads"]), strict=True):
            # Where terms cancel, the error is relative to the terms, not to their sum.
            np.testing.assert_allclose(grad, expected, rtol=tolerance, atol=tolerance * np.abs(expected).max())


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([1.0, 2.0, 4.0]))
def test_distillation_is_zero_at_the_teacher(seed, temperature):
    outputs, batch, references = random_inputs(seed, teachers=1)
    outputs = {"logits": references["teachers"][0]["logits"] + 3}  # the same probabilities
    hparams = HPARAMS | {"temperature": temperature}
    value, grads = value_and_grad("distillation", outputs, batch, references, hparams)
    np.testing.assert_allclose(value, 0, atol=1e-5)
    np.testing.assert_allclose(grads["logits"], 0, atol=1e-5)
    other, _ = value_and_grad("distillation", {"logits": -outputs["logits"]}, batch, references, hparams)
    assert other > 0


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.permutations(range(5)), st.sampled_from([0.0, 1.0]))
def test_loss_ignores_order_of_images(seed, order, balance):
    order = np.array(order)
    arguments = random_inputs(seed, teachers=1)
    hparams = HPARAMS | {"distribution_alignment": balance}
    reordered = compiled(*PER_IMAGE)(*reorder(arguments, order), hparams)
    assert_close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
    for name, (value, grads) in compiled(*PER_IMAGE)(*arguments, hparams).items():
        np.testing.assert_allclose(value, reordered[name][0], rtol=1e-5, atol=1e-7, err_msg=name)
        jax.tree.map(assert_close, reorder(grads, order), reordered[name][1])


def test_loss_is_mean_over_images():
    arguments = random_inputs(0, teachers=1)
    twice = values(*jax.tree.map(lambda x: jnp.concatenate([x, x]), arguments), HPARAMS)
    for name, (value, _) in compiled(*PER_IMAGE)(*arguments, HPARAMS).items():
        np.testing.assert_allclose(value, twice[name], rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("name", ["pseudo_label", "fixmatch"])
def test_loss_is_zero_below_threshold(name):
    value, grads = value_and_grad(name, *random_inputs(0), HPARAMS | {"threshold": 1.01})
    assert value == 0
    assert all((np.asarray(g) == 0).all() for g in jax.tree.leaves(grads))
    assert value_and_grad(name, *random_inputs(0), HPARAMS | {"threshold": 0.0})[0] > 0


def test_fixmatch_gradient_is_of_strong_view_only():
    _, grads = value_and_grad("fixmatch", *random_inputs(0), HPARAMS)
    assert np.asarray(grads["strong"]["logits"]).any()
    assert not np.asarray(grads["weak"]["logits"]).any()


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 1000),
    st.floats(0, 100),
    st.sampled_from([0.0, 1.0]),
    st.lists(st.integers(0, 9), min_size=3, max_size=3),
)
def test_pseudo_targets_are_probabilities(seed, scale, balance, counts):
    prior = np.array(counts, np.float32) / sum(counts) if sum(counts) else np.full(3, 1 / 3, np.float32)
    logits = jnp.asarray(scale * np.random.default_rng(seed).standard_normal((6, 3)), jnp.float32)
    targets = np.asarray(jit(pseudo_targets)(logits, {"distribution_alignment": balance, "prior": prior}))
    assert (targets >= 0).all()
    np.testing.assert_allclose(targets.sum(-1), 1, rtol=1e-5)
    if balance:
        assert (targets[:, prior == 0] == 0).all()
    else:
        np.testing.assert_allclose(targets, jax.nn.softmax(logits), rtol=1e-5, atol=1e-7)


def test_balance_restores_neglected_class():
    logits = jnp.array([[2.0, 0.0], [3.0, 0.0], [1.0, 0.0], [0.5, 0.0]])
    hparams = {"prior": np.array([0.5, 0.5], np.float32)}
    targets = jit(pseudo_targets)
    assert targets(logits, hparams | {"distribution_alignment": 0.0}).argmax(-1).tolist() == [0, 0, 0, 0]
    assert targets(logits, hparams | {"distribution_alignment": 1.0}).argmax(-1).tolist() == [0, 0, 1, 1]
    grad = jit(jax.grad(lambda x: pseudo_targets(x, hparams | {"distribution_alignment": 1.0})[0, 0]))
    assert (grad(logits) == 0).all()


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("pseudo_label", {(0.0, 0.0): 1, (0.5, 0.0): 1, (0.0, 0.5): 0, (0.25, 0.5): 0.5, (0.9, 0.5): 1}),
        ("fixmatch", {(0.0, 0.0): 1, (0.0, 0.5): 0, (0.25, 0.5): 0.5, (1.0, 1.0): 1}),
        ("mean_teacher", {(0.0, 0.0): 1, (0.0, 0.5): np.exp(-5), (0.25, 0.5): np.exp(-1.25), (0.9, 0.5): 1}),
    ],
)
def test_warmup_scales_loss(name, weights):
    run = jit(jax.value_and_grad(lambda hparams: LOSSES[name](*random_inputs(1), HPARAMS | hparams)))
    full, _ = run({"progress": 1.0, "unlabelled_warmup": 0.0})
    assert full > 0
    for (progress, ramp), weight in weights.items():
        value, grads = run({"progress": progress, "unlabelled_warmup": ramp})
        np.testing.assert_allclose(value, weight * full, rtol=1e-6)
        assert np.isfinite(list(grads.values())).all()


def test_half_precision_inputs_give_float32_loss():
    arguments = random_inputs(2, teachers=1)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16) if x.dtype == jnp.float32 else x, arguments)
    wide = jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x, half)
    expected = compiled(*PER_IMAGE)(*wide, HPARAMS)
    for name, value in values(*half, HPARAMS).items():
        assert (value.shape, value.dtype) == ((), jnp.float32), name
        # Only the inputs are rounded, not the arithmetic.
        np.testing.assert_allclose(value, expected[name][0], rtol=1e-6, err_msg=name)


@pytest.mark.parametrize(("name", "expected"), [("l2", 64.0), ("l2_sp", 56.25)])
def test_penalty_sums_half_precision_in_float32(name, expected):
    params = {"new/kernel": jnp.full((512, 256), 2**-5, jnp.bfloat16), "old/kernel": jnp.ones(450, jnp.bfloat16)}
    value = LOSSES[name]({"params": params}, {}, {"params": {"old/kernel": jnp.full(450, 0.5)}}, {})
    assert (value, value.dtype) == (expected, jnp.float32)


def test_attention_transfer_of_zero_features_is_finite():
    outputs, batch, references = random_inputs(3)
    outputs["maps"] = {"stage1": jnp.zeros_like(outputs["maps"]["stage1"])}
    value, grads = value_and_grad("attention_transfer", outputs, batch, references, HPARAMS)
    assert value > 0
    assert (grads["maps"]["stage1"] == 0).all()


def test_hints_rejects_two_teachers():
    with pytest.raises(UserError, match="The loss hints takes exactly one teacher, got 2"):
        LOSSES["hints"](*random_inputs(0, teachers=2), HPARAMS)


def test_references_have_no_gradient():
    product = Loss("product", lambda outputs, batch, references, hparams: (outputs["x"] * references["x"]).sum())
    x = {"x": jnp.arange(3.0)}
    np.testing.assert_array_equal(jax.grad(lambda x: product(x, {}, x, {}))(x)["x"], x["x"])


def test_requirements_are_all_used():
    assert set().union(*(term.requires for term in LOSSES.values())) == REQUIREMENTS.keys() - {"maps"}
    assert all(name == term.name and term.function.__doc__ for name, term in LOSSES.items())


def test_loss_rejects_unknown_requirement():
    with pytest.raises(UserError, match=r'no loss requirement "teacher_logit".*did you mean "teacher_logits"'):
        loss("teacher_logit")


def test_get_loss_by_name():
    assert get_loss("delta") is LOSSES["delta"]
    with pytest.raises(UserError, match='There is no loss "fixmach"; did you mean "fixmatch"'):
        get_loss("fixmach")


def test_get_loss_from_file(tmp_path):
    file = tmp_path / "custom.py"
    file.write_text(
        "from tljax.losses import loss\n"
        "def plain(outputs, batch, references, hparams): return hparams['a'] * outputs['logits'].sum()\n"
        "@loss('weak')\n"
        "def decorated(outputs, batch, references, hparams): return outputs['weak']['logits'].mean()\n"
        "number = 3\n"
    )
    plain = get_loss(f"{file}:plain")
    decorated = get_loss(f"{file}:decorated")
    assert (plain.name, plain.requires) == ("plain", frozenset())
    assert (decorated.name, decorated.requires) == ("decorated", {"weak"})
    assert plain({"logits": jnp.ones((2, 3))}, {}, {}, {"a": 2.0}) == 12
    assert get_loss(f"{file}:plain") == plain
    with pytest.raises(UserError, match="must be a function, got int"):
        get_loss(f"{file}:number")
