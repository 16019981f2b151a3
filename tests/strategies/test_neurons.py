"""Single neurons: which layers there are, how many learn, which are best, and their parts of the leaves."""

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tljax import models
from tljax.config import NeuronsConfig
from tljax.errors import UserError
from tljax.models import layers
from tljax.models import params as params_lib
from tljax.models.backbones import convnext, densenet, inception, resnet, unet, vgg
from tljax.strategies import neurons

CONV, LEAVES = inception.Conv, ("kernel", "bias", "bn/scale", "bn/bias")
INCEPTION = inception.Variant(3, ((CONV(4, 3, 2),), (inception.MaxPool(), ((CONV(3),), (CONV(2), CONV(4, 3))))))


@functools.cache
def params_of(variant):
    model = models.create_model(variant, num_classes=3, image_size=32, rngs=None)
    return params_lib.flatten_model(model).params, model.norm_of_conv


def found_in(variant, *patterns):
    params, norm_after = params_of(variant)
    return neurons.find_layers(params, patterns, norm_after)


def unit(path, *leaves):
    """A convolution inside a `ConvNorm`, and those leaves of it that there are."""
    return {f"{path}/conv": tuple(f"{path}/{leaf}" for leaf in leaves)}


NORMED = ("conv/kernel", "bn/scale", "bn/bias")


def test_vgg_has_biases_and_with_batch_norm_scales():
    plain = vgg.Variant(((4, 4), (6,)))
    assert found_in(plain, "stem/.*", ".*/conv1", "head/dense") == {
        "stem/conv1": ("stem/conv1/kernel", "stem/conv1/bias"),
        "stage2/conv1": ("stage2/conv1/kernel", "stage2/conv1/bias"),
        "head/dense": ("head/dense/kernel", "head/dense/bias"),
    }
    normed = vgg.Variant(((4, 4), (6,)), norm=layers.TORCH_BN)
    assert found_in(normed, "stage1/.*") == unit("stage1/conv2", "conv/kernel", "conv/bias", "bn/scale", "bn/bias")


def test_resnet_has_units_and_shortcuts():
    variant = resnet.Variant((1, 1), (4, 6), bottleneck=False, small=True)
    assert found_in(variant, "stage2/.*") == {
        **unit("stage2/block0/shortcut", *NORMED),
        **unit("stage2/block0/unit1", *NORMED),
        **unit("stage2/block0/unit2", *NORMED),
    }
    assert set(found_in(variant, "(?!head/).*")) == {
        "stem/unit/conv",
        "stage1/block0/unit1/conv",
        "stage1/block0/unit2/conv",
        "stage2/block0/shortcut/conv",
        "stage2/block0/unit1/conv",
        "stage2/block0/unit2/conv",
    }


def test_densenet_norms_follow_in_the_next_unit_or_not_at_all():
    variant = densenet.Variant((1, 1), growth=4, initial=4, bottleneck=2)
    assert found_in(variant, "(?!head/).*") == {
        **unit("stem/unit", *NORMED),
        "stage1/layer1/unit1/conv": (
            "stage1/layer1/unit1/conv/kernel",
            "stage1/layer1/unit2/bn/scale",
            "stage1/layer1/unit2/bn/bias",
        ),
        **unit("stage1/layer1/unit2", "conv/kernel"),
        **unit("stage2/transition", "conv/kernel"),
        "stage2/layer1/unit1/conv": (
            "stage2/layer1/unit1/conv/kernel",
            "stage2/layer1/unit2/bn/scale",
            "stage2/layer1/unit2/bn/bias",
        ),
        **unit("stage2/layer1/unit2", "conv/kernel"),
    }


def test_convnext_layer_norms_and_gammas_belong_to_no_neuron():
    found = found_in(convnext.Variant((1, 1), (4, 6), size=3), "(?!head/).*")
    assert set(found) == {
        "stem/conv",
        "stage2/conv",
        *(f"stage{k}/block0/{layer}" for k in (1, 2) for layer in ("conv", "dense1", "dense2")),
    }
    assert all(paths == (f"{layer}/kernel", f"{layer}/bias") for layer, paths in found.items())


def test_inception_units_and_norms_without_scale():
    assert found_in(INCEPTION, "stage1/.*") == {
        **unit("stage1/block1/branch1/unit1", *NORMED),
        **unit("stage1/block1/branch2/unit1", *NORMED),
        **unit("stage1/block1/branch2/unit2", *NORMED),
    }
    keras = inception.Variant(3, INCEPTION.stages, inception.BatchNormConfig(scale=False))
    assert found_in(keras, "stem/.*") == unit("stem/unit1", "conv/kernel", "bn/bias")


def test_unet_units():
    variant = unet.Variant((4, 6), bias=True)
    assert found_in(variant, "stem/unit1/.*") == unit("stem/unit1", "conv/kernel", "conv/bias", "bn/scale", "bn/bias")


@pytest.mark.parametrize(
    "variant",
    [
        vgg.Variant(((4,), (6,)), norm=layers.TORCH_BN),
        resnet.Variant((1,), (4,)),
        densenet.Variant((1, 1), growth=4, initial=4, bottleneck=2),
        convnext.Variant((1, 1), (4, 6), size=3),
        INCEPTION,
    ],
)
def test_the_leaves_of_a_neuron_are_as_long_as_its_layer_has_outputs_and_no_leaf_has_two_layers(variant):
    params, _ = params_of(variant)
    found = found_in(variant, ".*")
    for paths in found.values():
        assert len({params[path].shape[-1] for path in paths}) == 1
    paths = [path for paths in found.values() for path in paths]
    assert len(set(paths)) == len(paths)
    assert {path for path in params if path.endswith("/kernel")} <= set(paths)


def test_patterns_are_of_layers_or_kernels_and_must_match():
    variant = vgg.Variant(((4,), (6,)))
    assert (
        found_in(variant, "stage2/conv1/kernel") == found_in(variant, "stage2/conv1") == found_in(variant, "stage2/.*")
    )
    with pytest.raises(UserError, match=r'neurons\.layers: "stage2/conv" matches .*; did you mean "stage2/conv1"'):
        found_in(variant, "stem/.*", "stage2/conv")
    with pytest.raises(UserError, match=r"matches no convolution or dense layer"):
        found_in(convnext.Variant((1, 1), (4, 6), size=3), "stem/norm")


LAYERS = {"a": ("a/kernel",), "b": ("b/kernel",), "c": ("c/kernel",)}
PARAMS = {"a/kernel": np.zeros((3, 25)), "b/kernel": np.zeros((1, 1, 2, 4)), "c/kernel": np.zeros((3, 70))}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (NeuronsConfig(fraction=0.2), {"a": 5, "b": 1, "c": 14}),
        (NeuronsConfig(fraction=0.01), {"a": 1, "b": 1, "c": 1}),
        (NeuronsConfig(count=4), {"a": 4, "b": 4, "c": 4}),
        (NeuronsConfig(fraction=0.2, scope="global"), {"a": 5, "b": 0, "c": 15}),
        (NeuronsConfig(count=99, scope="global"), {"a": 25, "b": 4, "c": 70}),
    ],
)
def test_how_many_learn(config, expected):
    assert neurons.channel_counts(LAYERS, PARAMS, config) == expected


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (NeuronsConfig(count=5), r"neurons\.count \(5\) is more than the 4 neurons of b"),
        (NeuronsConfig(count=100, scope="global"), r"more than the 99 neurons of all layers together"),
    ],
)
def test_more_than_there_are(config, words):
    with pytest.raises(UserError, match=words):
        neurons.channel_counts(LAYERS, PARAMS, config)
    with pytest.raises(UserError, match=words):
        neurons.select_channels({path[0]: np.ones(leaf.shape[-1]) for path, leaf in PARAMS.items()}, config)


def test_the_best_are_chosen():
    scores = {"a": np.array([3, 1, 3, 2.0]), "b": np.array([0, 0.02, 0.01, 0.01]), "c": np.zeros(2)}
    by_layer = neurons.select_channels(scores, NeuronsConfig(fraction=0.5))
    assert {layer: i.tolist() for layer, i in by_layer.items()} == {"a": [0, 2], "b": [1, 2], "c": [0]}
    assert all(i.dtype == np.int32 for i in by_layer.values())
    # Divided by their root mean squares, b's second is best, then a's first and third, then a's last, just.
    together = neurons.select_channels(scores, NeuronsConfig(count=4, scope="global"))
    assert {layer: i.tolist() for layer, i in together.items()} == {"a": [0, 2, 3], "b": [1], "c": []}
    # Layers of which none was chosen have no index.
    assert set(neurons.channel_index(together, LAYERS)) == {"a/kernel", "b/kernel"}
    # A checkpoint has lists.
    (index,) = neurons.channel_index({"b": [1, 3], "c": []}, {"b": ("b/kernel",), "c": ("c/kernel",)}).values()
    assert (index.tolist(), index.dtype) == ([1, 3], np.int32)
    with pytest.raises(UserError, match="criterion='fisher' is not finite for neurons of b"):
        neurons.select_channels(scores | {"b": np.array([1, np.nan])}, NeuronsConfig())


scores = st.dictionaries(
    st.sampled_from("abcd"),
    arrays.arrays(np.float64, st.integers(1, 7), elements=st.sampled_from([0, 0.5, 1, 2, 1e-3, 1e6])),
    min_size=1,
)


@given(scores, st.floats(0.01, 1), st.sampled_from(["layer", "global"]))
def test_as_many_as_planned_and_none_left_out_is_better(scores, fraction, scope):
    config = NeuronsConfig(fraction=fraction, scope=scope)
    chosen = neurons.select_channels(scores, config)
    leaves = {f"{layer}/kernel": np.zeros((2, len(score))) for layer, score in scores.items()}
    planned = neurons.channel_counts({layer: (f"{layer}/kernel",) for layer in scores}, leaves, config)
    sizes = {layer: len(index) for layer, index in chosen.items()}
    assert sum(sizes.values()) == sum(planned.values())
    assert scope == "global" or sizes == planned
    relative = {layer: score / (np.sqrt((score**2).mean()) or 1) for layer, score in scores.items()}
    left = {layer: np.setdiff1d(np.arange(len(score)), chosen[layer]) for layer, score in scores.items()}
    rivals = [[layer] for layer in scores] if scope == "layer" else [list(scores)]
    for together in rivals:
        inside = np.concatenate([relative[layer][chosen[layer]] for layer in together])
        outside = np.concatenate([relative[layer][left[layer]] for layer in together])
        assert inside.min() >= outside.max(initial=-np.inf)
    assert all((np.diff(index) > 0).all() for index in chosen.values())


@st.composite
def sliced(draw):
    out = draw(st.integers(1, 6))
    index = np.array(sorted(draw(st.sets(st.integers(0, out - 1), min_size=1))), np.int32)
    # All of float32, signed zeros, infinities and NaN: only bits count.
    bits = arrays.arrays(np.uint32, draw(st.sampled_from([(out,), (2, out), (2, 1, 3, out)])))
    return draw(bits).view(np.float32), index


@given(sliced(), st.integers(0, 9))
@settings(max_examples=15, deadline=None)
def test_what_is_gathered_and_scattered_back_keeps_every_bit_of_the_others(case, seed):
    leaf, index = case
    leaves, index = {"a/kernel": leaf, "b/kernel": np.ones((2, 2), np.float32)}, {"a/kernel": index}
    slices = neurons.gather(leaves, index)
    np.testing.assert_array_equal(bits(slices["a/kernel"]), bits(leaf[..., index["a/kernel"]]))
    same = neurons.scatter(leaves, slices, index)
    np.testing.assert_array_equal(bits(same["a/kernel"]), bits(leaf))
    new = np.random.default_rng(seed).normal(size=slices["a/kernel"].shape).astype(np.float32)
    changed = neurons.scatter(leaves, {"a/kernel": new}, index)
    expected = leaf.copy()
    expected[..., index["a/kernel"]] = new
    np.testing.assert_array_equal(bits(changed["a/kernel"]), bits(expected))
    assert changed["b/kernel"] is leaves["b/kernel"]


def bits(x):
    return np.asarray(x).view(np.uint32)
