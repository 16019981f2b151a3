"""Training of single neurons: layers of each network family, channel counts, selection, and slices of parameters."""

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
from tljax.models.backbones import convnext, densenet, efficientnet, inception, resnet, unet, vgg
from tljax.strategies import neurons

CONV = inception.Conv
INCEPTION = inception.Variant(3, ((CONV(4, 3, 2),), (inception.MaxPool(), ((CONV(3),), (CONV(2), CONV(4, 3))))))


@functools.cache
def params_of(variant):
    model = models.create_model(variant, num_classes=3, image_size=32, rngs=None)
    return params_lib.flatten_model(model).params, model.norm_of_conv


def find_layers(variant, *patterns):
    params, norm_after = params_of(variant)
    return neurons.find_layers(params, patterns, norm_after)


def unit(path, *names):
    """Return the layer of the convolution in a `ConvNorm`, with its parameters of the given names."""
    return {f"{path}/conv": tuple(f"{path}/{name}" for name in names)}


NORMED = ("conv/kernel", "bn/scale", "bn/bias")


def test_find_layers_of_vgg():
    plain = vgg.Variant(((4, 4), (6,)))
    assert find_layers(plain, "stem/.*", ".*/conv1", "head/dense") == {
        "stem/conv1": ("stem/conv1/kernel", "stem/conv1/bias"),
        "stage2/conv1": ("stage2/conv1/kernel", "stage2/conv1/bias"),
        "head/dense": ("head/dense/kernel", "head/dense/bias"),
    }
    normed = vgg.Variant(((4, 4), (6,)), norm=layers.TORCH_BN)
    assert find_layers(normed, "stage1/.*") == unit("stage1/conv2", "conv/kernel", "conv/bias", "bn/scale", "bn/bias")


def test_find_layers_of_resnet():
    variant = resnet.Variant((1, 1), (4, 6), bottleneck=False, small=True)
    assert find_layers(variant, "stage2/.*") == {
        **unit("stage2/block0/shortcut", *NORMED),
        **unit("stage2/block0/unit1", *NORMED),
        **unit("stage2/block0/unit2", *NORMED),
    }
    assert set(find_layers(variant, "(?!head/).*")) == {
        "stem/unit/conv",
        "stage1/block0/unit1/conv",
        "stage1/block0/unit2/conv",
        "stage2/block0/shortcut/conv",
        "stage2/block0/unit1/conv",
        "stage2/block0/unit2/conv",
    }


def test_find_layers_of_densenet():
    variant = densenet.Variant((1, 1), growth=4, initial=4, bottleneck=2)
    assert find_layers(variant, "(?!head/).*") == {
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


def test_find_layers_of_convnext_without_norms():
    by_layer = find_layers(convnext.Variant((1, 1), (4, 6), size=3), "(?!head/).*")
    assert set(by_layer) == {
        "stem/conv",
        "stage2/conv",
        *(f"stage{k}/block0/{layer}" for k in (1, 2) for layer in ("conv", "dense1", "dense2")),
    }
    assert all(paths == (f"{layer}/kernel", f"{layer}/bias") for layer, paths in by_layer.items())


def test_find_layers_of_efficientnet():
    variant = efficientnet.Variant(0.05, 0.1)
    assert find_layers(variant, "stage1/.*", "top/.*") == {
        **unit("stage1/block0/depthwise", *NORMED),
        **unit("stage1/block0/project", *NORMED),
        **unit("top/unit", *NORMED),
    }
    assert set(find_layers(variant, "stage2/.*")) == {
        f"stage2/block0/{name}/conv" for name in ("expand", "depthwise", "project")
    }


def test_find_layers_of_inception():
    assert find_layers(INCEPTION, "stage1/.*") == {
        **unit("stage1/block1/branch1/unit1", *NORMED),
        **unit("stage1/block1/branch2/unit1", *NORMED),
        **unit("stage1/block1/branch2/unit2", *NORMED),
    }
    keras = inception.Variant(3, INCEPTION.stages, inception.BatchNormConfig(scale=False))
    assert find_layers(keras, "stem/.*") == unit("stem/unit1", "conv/kernel", "bn/bias")


def test_find_layers_of_unet():
    variant = unet.Variant((4, 6), bias=True)
    expected = unit("stem/unit1", "conv/kernel", "conv/bias", "bn/scale", "bn/bias")
    assert find_layers(variant, "stem/unit1/.*") == expected


@pytest.mark.parametrize(
    "variant",
    [
        vgg.Variant(((4,), (6,)), norm=layers.TORCH_BN),
        resnet.Variant((1,), (4,)),
        densenet.Variant((1, 1), growth=4, initial=4, bottleneck=2),
        convnext.Variant((1, 1), (4, 6), size=3),
        efficientnet.Variant(0.05, 0.1),
        INCEPTION,
    ],
)
def test_layer_params_share_channels_and_are_disjoint(variant):
    params, _ = params_of(variant)
    by_layer = find_layers(variant, ".*")
    for paths in by_layer.values():
        assert len({params[path].shape[-1] for path in paths}) == 1
    paths = [path for paths in by_layer.values() for path in paths]
    assert len(set(paths)) == len(paths)
    assert {path for path in params if path.endswith("/kernel")} <= set(paths)


def test_find_layers_by_layer_or_kernel_pattern():
    variant = vgg.Variant(((4,), (6,)))
    expected = find_layers(variant, "stage2/conv1/kernel")
    assert find_layers(variant, "stage2/conv1") == expected
    assert find_layers(variant, "stage2/.*") == expected
    with pytest.raises(UserError, match=r'neurons\.layers: "stage2/conv" matches .*; did you mean "stage2/conv1"'):
        find_layers(variant, "stem/.*", "stage2/conv")
    with pytest.raises(UserError, match=r"matches no convolution or dense layer"):
        find_layers(convnext.Variant((1, 1), (4, 6), size=3), "stem/norm")


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
def test_channel_counts(config, expected):
    assert neurons.channel_counts(LAYERS, PARAMS, config) == expected


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (NeuronsConfig(count=5), r"neurons\.count \(5\) is more than the 4 neurons of b"),
        (NeuronsConfig(count=100, scope="global"), r"more than the 99 neurons of all layers together"),
    ],
)
def test_count_above_number_of_channels_fails(config, message):
    with pytest.raises(UserError, match=message):
        neurons.channel_counts(LAYERS, PARAMS, config)
    with pytest.raises(UserError, match=message):
        neurons.select_channels({path[0]: np.ones(param.shape[-1]) for path, param in PARAMS.items()}, config)


def test_select_channels_with_best_scores():
    scores = {"a": np.array([3, 1, 3, 2.0]), "b": np.array([0, 0.02, 0.01, 0.01]), "c": np.zeros(2)}
    by_layer = neurons.select_channels(scores, NeuronsConfig(fraction=0.5))
    assert {layer: i.tolist() for layer, i in by_layer.items()} == {"a": [0, 2], "b": [1, 2], "c": [0]}
    assert all(i.dtype == np.int32 for i in by_layer.values())
    # Divided by the root mean square of the layer, the best are b[1], then a[0] and a[2], then a[3].
    over_layers = neurons.select_channels(scores, NeuronsConfig(count=4, scope="global"))
    assert {layer: i.tolist() for layer, i in over_layers.items()} == {"a": [0, 2, 3], "b": [1], "c": []}
    # Layers without selected channels have no index.
    assert set(neurons.channel_index(over_layers, LAYERS)) == {"a/kernel", "b/kernel"}
    # Checkpoints store lists.
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
def test_random_selection_has_planned_counts_and_best(scores, fraction, scope):
    config = NeuronsConfig(fraction=fraction, scope=scope)
    selected = neurons.select_channels(scores, config)
    params = {f"{layer}/kernel": np.zeros((2, len(score))) for layer, score in scores.items()}
    planned = neurons.channel_counts({layer: (f"{layer}/kernel",) for layer in scores}, params, config)
    sizes = {layer: len(index) for layer, index in selected.items()}
    assert sum(sizes.values()) == sum(planned.values())
    assert scope == "global" or sizes == planned
    normalized = {layer: score / (np.sqrt((score**2).mean()) or 1) for layer, score in scores.items()}
    others = {layer: np.setdiff1d(np.arange(len(score)), selected[layer]) for layer, score in scores.items()}
    compared = [[layer] for layer in scores] if scope == "layer" else [list(scores)]
    for layers_together in compared:
        inside = np.concatenate([normalized[layer][selected[layer]] for layer in layers_together])
        outside = np.concatenate([normalized[layer][others[layer]] for layer in layers_together])
        assert inside.min() >= outside.max(initial=-np.inf)
    assert all((np.diff(index) > 0).all() for index in selected.values())


@st.composite
def params_and_indices(draw):
    out = draw(st.integers(1, 6))
    index = np.array(sorted(draw(st.sets(st.integers(0, out - 1), min_size=1))), np.int32)
    # Any bits of float32, including signed zeros, infinities and NaN.
    bits = arrays.arrays(np.uint32, draw(st.sampled_from([(out,), (2, out), (2, 1, 3, out)])))
    return draw(bits).view(np.float32), index


@given(params_and_indices(), st.integers(0, 9))
@settings(max_examples=15, deadline=None)
def test_scatter_of_gathered_slices_keeps_other_bits(case, seed):
    kernel, channels = case
    params = {"a/kernel": kernel, "b/kernel": np.ones((2, 2), np.float32)}
    index = {"a/kernel": channels}
    slices = neurons.gather_channels(params, index)
    np.testing.assert_array_equal(bits(slices["a/kernel"]), bits(kernel[..., channels]))
    unchanged = neurons.scatter_channels(params, slices, index)
    np.testing.assert_array_equal(bits(unchanged["a/kernel"]), bits(kernel))
    new = np.random.default_rng(seed).normal(size=slices["a/kernel"].shape).astype(np.float32)
    changed = neurons.scatter_channels(params, {"a/kernel": new}, index)
    expected = kernel.copy()
    expected[..., channels] = new
    np.testing.assert_array_equal(bits(changed["a/kernel"]), bits(expected))
    assert changed["b/kernel"] is params["b/kernel"]


def bits(x):
    return np.asarray(x).view(np.uint32)
