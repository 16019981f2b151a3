"""Every objective beside a reference implementation, in value and gradient, and what must hold for any input."""

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

GOLDEN = Path(__file__).parent.parent / "golden" / "objectives.npz"
# Others' numbers for them are in test_pixels.py, test_pixel_objectives.py and test_detection_objectives.py.
LOCATED = {"dice", "focal", "lovasz", "boundary_cross_entropy"} | {n for n in LOSSES if "detection" in n}
OF_CLASSES = sorted(LOSSES.keys() - LOCATED)
OF_PICTURES = sorted(LOSSES.keys() - {"l2", "l2_sp"} - LOCATED)
NUMBERS = {
    "label_smoothing": 0.1,
    "temperature": 4.0,
    "threshold": 0.5,
    "balance": 0.0,
    "prior": np.array([0.5, 0.3, 0.2], np.float32),
    "progress": 0.0,
    "ramp": 0.0,
}


# Compiling is what takes the time here.
jit = partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
)


@cache
def cases():
    """{objective: [{outputs, batch, reference, hyper, value, grads}]} in float64."""
    found = {}
    with np.load(GOLDEN) as arrays:
        for key in arrays:
            case, _, place = key.partition(":")
            *parents, last = place.split(".")
            node = found.setdefault(case, {"batch": {}, "reference": {}, "hyper": {}})
            for parent in parents:
                node = node.setdefault(parent, {})
            node[last] = arrays[key]
    for case in found.values():
        if teachers := case["reference"].get("teachers"):
            case["reference"]["teachers"] = tuple(teachers[str(i)] for i in range(len(teachers)))
    return {name: [case for key, case in found.items() if key.startswith(f"{name}-")] for name in OF_CLASSES}


@cache
def compiled(*names):
    """(outputs, batch, reference, hyper) → {objective: (value, gradient)}, in one program."""
    return jit(lambda *arguments: {name: jax.value_and_grad(LOSSES[name])(*arguments) for name in names})


@jit
def values(*arguments):
    return {name: LOSSES[name](*arguments) for name in OF_PICTURES}


def value_and_grads(name, *arguments):
    return compiled(name)(*arguments)[name]


def cast(tree, dtype):
    """A tree with its floating-point leaves in `dtype`."""
    return jax.tree.map(lambda x: x.astype(dtype) if x.dtype == np.float64 else x, tree)


def rows(tree, order):
    """A tree with the pictures of every array in another order."""
    return jax.tree.map(lambda x: x[order], tree)


def drawn(seed, pictures=5, teachers=2):
    """All that the objectives of this file's properties look at."""
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return jnp.asarray(2 * rng.standard_normal((pictures, *shape)), jnp.float32)

    outputs = {name: draw(3) for name in ("logits", "aux1", "source")} | {"maps": {"stage1": draw(4, 3, 2)}}
    outputs |= {"weak": {"logits": draw(3)}, "strong": {"logits": draw(3)}, "hint_stage1": draw(4, 3, 5)}
    reference = {
        "teachers": tuple({"logits": draw(3), "maps": {"stage1": draw(2, 5, 5)}} for _ in range(teachers)),
        "source": {"logits": draw(3), "maps": {"stage1": draw(4, 3, 2)}},
        "average": {"logits": draw(3)},
    }
    return outputs, {"label": jnp.asarray(rng.integers(0, 3, pictures))}, reference


@cache
def answers(dtype):
    """{objective: [(value, gradient) of each case]}, in one program: compiling is what takes the time."""
    parts = ("outputs", "batch", "reference", "hyper")
    given = {name: [[case[part] for part in parts] for case in found] for name, found in cases().items()}

    @jit
    def run(given):
        return {name: [jax.value_and_grad(LOSSES[name])(*case) for case in found] for name, found in given.items()}

    with jax.enable_x64(dtype == "float64"):
        return run(cast(given, dtype))


@pytest.mark.parametrize("name", OF_CLASSES)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-10), ("float32", 1e-5)])
def test_value_and_gradient_are_the_references(name, dtype, tolerance):
    found = answers(dtype)[name]
    assert found
    for (value, grads), case in zip(found, cases()[name], strict=True):
        assert value.shape == ()
        assert value.dtype == dtype or value == 0
        np.testing.assert_allclose(value, case["value"], rtol=tolerance, atol=tolerance * 1e-3)
        assert jax.tree.structure(grads) == jax.tree.structure(case["grads"])
        for ours, theirs in zip(jax.tree.leaves(grads), jax.tree.leaves(case["grads"]), strict=True):
            # Where terms cancel, what is left is exact to the terms' size, not to its own.
            np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance * np.abs(theirs).max())


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([1.0, 2.0, 4.0]))
def test_distillation_ends_at_the_teacher(seed, temperature):
    outputs, batch, reference = drawn(seed, teachers=1)
    outputs = {"logits": reference["teachers"][0]["logits"] + 3}  # The same probabilities.
    hyper = NUMBERS | {"temperature": temperature}
    value, grads = value_and_grads("distillation", outputs, batch, reference, hyper)
    np.testing.assert_allclose(value, 0, atol=1e-5)
    np.testing.assert_allclose(grads["logits"], 0, atol=1e-5)
    other, _ = value_and_grads("distillation", {"logits": -outputs["logits"]}, batch, reference, hyper)
    assert other > 0


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.permutations(range(5)), st.sampled_from([0.0, 1.0]))
def test_order_of_pictures_does_not_matter(seed, order, balance):
    order, arguments, hyper = np.array(order), drawn(seed, teachers=1), NUMBERS | {"balance": balance}
    others = compiled(*OF_PICTURES)(*rows(arguments, order), hyper)
    for name, (value, grads) in compiled(*OF_PICTURES)(*arguments, hyper).items():
        np.testing.assert_allclose(value, others[name][0], rtol=1e-5, atol=1e-7, err_msg=name)
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), rows(grads, order), others[name][1])


def test_every_objective_is_a_mean_over_pictures():
    arguments = drawn(0, teachers=1)
    twice = values(*jax.tree.map(lambda x: jnp.concatenate([x, x]), arguments), NUMBERS)
    for name, (value, _) in compiled(*OF_PICTURES)(*arguments, NUMBERS).items():
        np.testing.assert_allclose(value, twice[name], rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("name", ["pseudo_label", "fixmatch"])
def test_no_picture_above_the_threshold_is_zero(name):
    value, grads = value_and_grads(name, *drawn(0), NUMBERS | {"threshold": 1.01})
    assert value == 0
    assert all((np.asarray(g) == 0).all() for g in jax.tree.leaves(grads))
    assert value_and_grads(name, *drawn(0), NUMBERS | {"threshold": 0.0})[0] > 0


def test_fixmatch_learns_from_strong_views_alone():
    _, grads = value_and_grads("fixmatch", *drawn(0), NUMBERS)
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
    targets = np.asarray(jit(pseudo_targets)(logits, {"balance": balance, "prior": prior}))
    assert (targets >= 0).all()
    np.testing.assert_allclose(targets.sum(-1), 1, rtol=1e-5)
    if balance:
        assert (targets[:, prior == 0] == 0).all()
    else:
        np.testing.assert_allclose(targets, jax.nn.softmax(logits), rtol=1e-5, atol=1e-7)


def test_balance_brings_back_a_class_that_the_student_neglects():
    logits = jnp.array([[2.0, 0.0], [3.0, 0.0], [1.0, 0.0], [0.5, 0.0]])
    numbers = {"prior": np.array([0.5, 0.5], np.float32)}
    targets = jit(pseudo_targets)
    assert targets(logits, numbers | {"balance": 0.0}).argmax(-1).tolist() == [0, 0, 0, 0]
    assert targets(logits, numbers | {"balance": 1.0}).argmax(-1).tolist() == [0, 0, 1, 1]
    slope = jit(jax.grad(lambda x: pseudo_targets(x, numbers | {"balance": 1.0})[0, 0]))
    assert (slope(logits) == 0).all()


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("pseudo_label", {(0.0, 0.0): 1, (0.5, 0.0): 1, (0.0, 0.5): 0, (0.25, 0.5): 0.5, (0.9, 0.5): 1}),
        ("fixmatch", {(0.0, 0.0): 1, (0.0, 0.5): 0, (0.25, 0.5): 0.5, (1.0, 1.0): 1}),
        ("mean_teacher", {(0.0, 0.0): 1, (0.0, 0.5): np.exp(-5), (0.25, 0.5): np.exp(-1.25), (0.9, 0.5): 1}),
    ],
)
def test_ramp(name, weights):
    at = jit(jax.value_and_grad(lambda hyper: LOSSES[name](*drawn(1), NUMBERS | hyper)))
    full, _ = at({"progress": 1.0, "ramp": 0.0})
    assert full > 0
    for (progress, ramp), weight in weights.items():
        value, slopes = at({"progress": progress, "ramp": ramp})
        np.testing.assert_allclose(value, weight * full, rtol=1e-6)
        assert np.isfinite(list(slopes.values())).all()


def test_half_precision_gives_float32_scalars():
    arguments = drawn(2, teachers=1)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16) if x.dtype == jnp.float32 else x, arguments)
    wide = jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x, half)
    expected = compiled(*OF_PICTURES)(*wide, NUMBERS)
    for name, value in values(*half, NUMBERS).items():
        assert (value.shape, value.dtype) == ((), jnp.float32), name
        # The numbers are those of the rounded inputs, not of rounded arithmetic.
        np.testing.assert_allclose(value, expected[name][0], rtol=1e-6, err_msg=name)


@pytest.mark.parametrize(("name", "expected"), [("l2", 64.0), ("l2_sp", 56.25)])
def test_penalties_add_up_small_numbers_in_half_precision(name, expected):
    leaves = {"new/kernel": jnp.full((512, 256), 2**-5, jnp.bfloat16), "old/kernel": jnp.ones(450, jnp.bfloat16)}
    value = LOSSES[name]({"leaves": leaves}, {}, {"leaves": {"old/kernel": jnp.full(450, 0.5)}}, {})
    assert (value, value.dtype) == (expected, jnp.float32)


def test_a_map_of_zeros_has_no_attention_and_no_nan():
    outputs, batch, reference = drawn(3)
    outputs["maps"] = {"stage1": jnp.zeros_like(outputs["maps"]["stage1"])}
    value, grads = value_and_grads("attention_transfer", outputs, batch, reference, NUMBERS)
    assert value > 0
    assert (grads["maps"]["stage1"] == 0).all()


def test_hints_follow_one_teacher():
    with pytest.raises(UserError, match="hints follow the maps of one teacher, got 2"):
        LOSSES["hints"](*drawn(0, teachers=2), NUMBERS)


def test_nothing_flows_into_the_reference():
    own = Loss("own", lambda outputs, batch, reference, hyper: (outputs["x"] * reference["x"]).sum())
    x = {"x": jnp.arange(3.0)}
    np.testing.assert_array_equal(jax.grad(lambda x: own(x, {}, x, {}))(x)["x"], x["x"])


def test_needs():
    assert set().union(*(o.requires for o in LOSSES.values())) == REQUIREMENTS.keys() - {"maps"}
    assert all(name == o.name and o.function.__doc__ for name, o in LOSSES.items())
    with pytest.raises(UserError, match=r'There is no need "teacher_logit".*did you mean "teacher_logits"'):
        loss("teacher_logit")


def test_find():
    assert get_loss("delta") is LOSSES["delta"]
    with pytest.raises(UserError, match='There is no objective "fixmach"; did you mean "fixmatch"'):
        get_loss("fixmach")


def test_find_in_a_file(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from tljax.losses import loss\n"
        "def plain(outputs, batch, reference, hyper): return hyper['a'] * outputs['logits'].sum()\n"
        "@loss('weak')\n"
        "def needy(outputs, batch, reference, hyper): return outputs['weak']['logits'].mean()\n"
        "number = 3\n"
    )
    plain, needy = get_loss(f"{file}:plain"), get_loss(f"{file}:needy")
    assert (plain.name, plain.requires, needy.name, needy.requires) == ("plain", frozenset(), "needy", {"weak"})
    assert plain({"logits": jnp.ones((2, 3))}, {}, {}, {"a": 2.0}) == 12
    assert get_loss(f"{file}:plain") == plain
    with pytest.raises(UserError, match="must be a function, got int"):
        get_loss(f"{file}:number")
