"""Resolving weights by every kind of name, and loading them into models of other shapes."""

import dataclasses
import functools
import hashlib

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save

from tests.weights.local_server import COMMIT, NAME, File
from tljax import models, weights
from tljax.errors import UserError
from tljax.models import params as params_lib
from tljax.models.backbones import convnext, resnet, vgg
from tljax.weights import PRESETS, adapt_channels
from tljax.weights.hub import from_hub
from tljax.weights.layouts import layouts

TINY = vgg.Variant(((4,), (6,)))
TORCHVISION, KERAS, LOCAL = "torchvision:resnet18.IMAGENET1K_V1", "keras:vgg16", "vgg16_imagenet_notop"


def build(config=TINY, classes=3, **options):
    """Return a small model with random parameters."""
    return models.create_model(config, num_classes=classes, image_size=16, rngs=nnx.Rngs(0), **options)


def variables_of(model):
    """Return the parameters and running statistics of a model by path."""
    _, params, stats = params_lib.flatten_model(model)
    return {path: np.asarray(value) for path, value in (params | stats).items()}


def exported_bytes(model, layout="torchvision"):
    """Return the content of a safetensors file with the model's weights."""
    return save(weights.export_weights(model, layouts(model.family, model.config)[layout]))


def randomized(model):
    """Fill every variable of the model with random values, and return the model."""
    rng = np.random.default_rng(1)
    params_lib.set_variables(
        model, {p: rng.uniform(0.5, 1.5, v.shape).astype(v.dtype) for p, v in variables_of(model).items()}
    )
    return model


CONTENT = exported_bytes(randomized(build()))
SHA256 = hashlib.sha256(CONTENT).hexdigest()
MD5 = hashlib.md5(CONTENT).hexdigest()


@pytest.fixture
def weights_dir(monkeypatch, tmp_path):
    """Set `$TLJAX_WEIGHTS_DIR` to an empty folder, and the cache to another; return the folder."""
    monkeypatch.setenv("TLJAX_WEIGHTS_DIR", str(tmp_path / "weights"))
    monkeypatch.setenv("TLJAX_CACHE", str(tmp_path / "cache"))
    (tmp_path / "weights").mkdir()
    return tmp_path / "weights"


@pytest.fixture
def publish(monkeypatch):
    """Replace the source and digest of a catalog entry."""

    def publish(name, url, digest, **fields):
        entry = dataclasses.replace(weights.CATALOG[name], source=url, digest=digest, **fields)
        monkeypatch.setitem(weights.CATALOG, name, entry)

    return publish


@pytest.fixture
def hub(site, monkeypatch, tmp_path):
    """Replace the Hub by the local server, with the small network in its repository."""
    site.repo[NAME] = site.files[f"/cdn/{NAME}"] = File(CONTENT)
    site.hub_headers = {"X-Linked-ETag": f'"{SHA256}"', "X-Linked-Size": str(len(CONTENT))}
    from_local_hub = functools.partial(from_hub, endpoint=site.url, cache_dir=tmp_path / "hub")
    monkeypatch.setattr("tljax.weights.hub.from_hub", from_local_hub)
    return site


def error_message(call, *arguments, **options):
    """Return the one-line message of the error that the call raises."""
    with pytest.raises(UserError) as caught:
        call(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Files


@pytest.mark.parametrize(
    ("name", "suffix", "algorithm", "digits"), [(TORCHVISION, ".pth", "sha256", 8), (KERAS, ".h5", "md5", 32)]
)
def test_resolve_weights_identifies_file_by_digest(name, suffix, algorithm, digits, publish, tmp_path):
    digest = hashlib.new(algorithm, CONTENT).hexdigest()[:digits]
    publish(name, "http://nowhere/else", digest)
    path = tmp_path / f"renamed{suffix}"
    path.write_bytes(CONTENT)
    resolved = weights.resolve_weights(str(path))
    entry = weights.CATALOG[name]
    assert (resolved.preprocess, resolved.backbone) == (entry.preprocess, entry.backbone)


def test_resolve_weights_by_path(tmp_path):
    path = tmp_path / "net.safetensors"
    path.write_bytes(CONTENT)
    for source in (str(path), f"file:{path}"):
        resolved = weights.resolve_weights(source)
        assert (resolved.name, resolved.path, resolved.sha256) == (source, path, SHA256)
        assert (resolved.preprocess, resolved.backbone, resolved.revision) == (None, None, None)
        assert resolved.describe() == {"name": source, "sha256": SHA256}
        assert weights.resolve_weights(source, "caffe").preprocess == PRESETS["caffe"]
    assert error_message(weights.resolve_weights, f"file:{path}x") == f"There are no weights at {path}x."
    assert error_message(weights.resolve_weights, str(tmp_path)) == f"There are no weights at {tmp_path}."


def test_load_restores_saved_values(tmp_path):
    path = tmp_path / "net.safetensors"
    path.write_bytes(CONTENT)
    model = build()
    assert weights.load(model, str(path)).path == path
    expected = variables_of(randomized(build()))
    assert all(np.array_equal(value, expected[p]) for p, value in variables_of(model).items())


def test_resolve_weights_in_weights_dir(weights_dir, publish, monkeypatch):
    publish(LOCAL, "net.safetensors", SHA256)
    assert error_message(weights.resolve_weights, LOCAL) == f"There are no weights at {weights_dir}/net.safetensors."
    (weights_dir / "net.safetensors").write_bytes(CONTENT)
    resolved = weights.resolve_weights(LOCAL)
    assert (resolved.path, resolved.sha256, resolved.backbone) == (weights_dir / "net.safetensors", SHA256, "vgg16")
    assert resolved.preprocess == PRESETS["caffe"]
    # Given by its path, the same file is identified by its digest.
    assert weights.resolve_weights(str(resolved.path)).preprocess == PRESETS["caffe"]
    (weights_dir / "net.safetensors").write_bytes(CONTENT + b" ")
    message = error_message(weights.resolve_weights, LOCAL)
    assert message.startswith(f"{weights_dir}/net.safetensors is not {LOCAL}: its SHA-256 is ")
    assert message.endswith(f", expected {SHA256}.")
    monkeypatch.delenv("TLJAX_WEIGHTS_DIR")
    message = error_message(weights.resolve_weights, LOCAL)
    assert message == f"{LOCAL} needs TLJAX_WEIGHTS_DIR, the folder that contains net.safetensors."


# torchvision: and keras:


@pytest.mark.parametrize(
    ("name", "digest", "preprocess"),
    [(TORCHVISION, SHA256[:8], "torch"), (KERAS, MD5, "caffe")],
    ids=["torch", "keras"],
)
def test_resolve_weights_from_cache_or_weights_dir(name, digest, preprocess, site, weights_dir, publish, tmp_path):
    publish(name, f"{site.url}/models/net.safetensors", digest)
    site.files["/models/net.safetensors"] = File(CONTENT)
    # Downloaded to the cache once.
    for _ in range(2):
        resolved = weights.resolve_weights(name)
        assert resolved.path.is_relative_to(tmp_path / "cache")
        assert (resolved.path.name, resolved.sha256, resolved.revision) == ("net.safetensors", SHA256, None)
    assert len(site.requests) == 1
    assert resolved.preprocess.same_values(PRESETS[preprocess])
    assert resolved.backbone == weights.CATALOG[name].backbone
    assert resolved.describe() == {"name": name, "sha256": SHA256}
    # A file in the folder takes precedence, without a request.
    local_file = weights_dir / "net.safetensors"
    local_file.write_bytes(CONTENT)
    assert weights.resolve_weights(name).path == local_file
    assert len(site.requests) == 1
    # A different file in the folder is an error.
    local_file.write_bytes(CONTENT[:-1])
    message = error_message(weights.resolve_weights, name)
    assert message.startswith(f"{local_file} is not {name}: its digest is ")
    assert message.endswith(f", expected {digest}.")


def test_resolve_weights_checks_downloaded_file(site, weights_dir, publish, tmp_path):
    url = f"{site.url}/net.safetensors"
    publish(TORCHVISION, url, SHA256[:8])
    site.files["/net.safetensors"] = File(CONTENT[:-1])
    message = error_message(weights.resolve_weights, TORCHVISION)
    assert message.startswith(f"{url} is not the expected file: its SHA-256 is ")
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
    del site.files["/net.safetensors"]
    message = error_message(weights.resolve_weights, TORCHVISION)
    assert message == f"{url} cannot be downloaded: the server returned HTTP 404."


@pytest.mark.parametrize(
    ("typo", "name"),
    [
        ("torchvision:resnet18.IMAGENET1K_V2", TORCHVISION),
        ("keras:vgg16_no_top", "keras:vgg16_notop"),
        ("vgg16_imagenet_notopp", LOCAL),
    ],
)
def test_resolve_weights_suggests_name(typo, name):
    message = error_message(weights.resolve_weights, typo)
    assert message.endswith(f'{typo}"; did you mean "{name}"?' if ":" in typo else f'"{name}"?')


# hf:


def test_resolve_weights_from_hub(hub):
    resolved = weights.resolve_weights("hf:lab/net")
    assert resolved.describe() == {"name": "hf:lab/net", "sha256": SHA256, "revision": COMMIT}
    assert (resolved.preprocess, resolved.backbone) == (None, None)
    same = weights.resolve_weights(f"hf:lab/net@{COMMIT}:{NAME}", "symmetric")
    assert (same.path, same.revision, same.preprocess) == (resolved.path, COMMIT, PRESETS["symmetric"])
    model = build()
    weights.load(model, resolved)
    expected = variables_of(randomized(build()))
    np.testing.assert_array_equal(variables_of(model)["stem/conv1/bias"], expected["stem/conv1/bias"])


def test_resolve_weights_of_cataloged_hub_repo(hub, monkeypatch):
    entry = dataclasses.replace(weights.CATALOG["hf:timm/resnet18.a1_in1k"], name="hf:lab/net", source="lab/net")
    monkeypatch.setitem(weights.CATALOG, "hf:lab/net", entry)
    resolved = weights.resolve_weights("hf:lab/net@main")
    assert (resolved.backbone, resolved.preprocess) == ("resnet18", entry.preprocess)
    assert resolved.preprocess.interpolation == "bicubic"
    assert 'was trained with preprocessing "torch"' in error_message(weights.resolve_weights, "hf:lab/net", "symmetric")


def test_resolve_weights_suggests_hub_repo(hub):
    message = error_message(weights.resolve_weights, "hf:timm/resnet18_a1_in1k")
    assert message.startswith("There is no timm/resnet18_a1_in1k at http://127.0.0.1:")
    assert message.endswith('; did you mean "hf:timm/resnet18.a1_in1k"?')
    # A name unlike any in the catalog gets no list of names.
    assert error_message(weights.resolve_weights, "hf:qqqqqqqq/zzzzzzzz").endswith("HF_TOKEN gives no access.")


# Preprocessing


def test_resolve_weights_refuses_conflicting_preprocess(weights_dir, publish):
    publish(TORCHVISION, "http://127.0.0.1/net.safetensors", SHA256[:8], image_size=176, interpolation="bicubic")
    (weights_dir / "net.safetensors").write_bytes(CONTENT)
    message = error_message(weights.resolve_weights, TORCHVISION, "caffe")
    assert message == (
        f'{TORCHVISION} was trained with preprocessing "torch": leave model.preprocess unset instead of "caffe".'
    )
    # With equal values, size and interpolation stay those of the publisher.
    resolved = weights.resolve_weights(TORCHVISION, "torch").preprocess
    assert (resolved.name, resolved.size, resolved.interpolation) == ("torch", 176, "bicubic")
    message = error_message(weights.resolve_weights, TORCHVISION, "cafe")
    assert message == 'There is no preprocessing "cafe"; did you mean "caffe"?'


# What does not fit


def test_load_error_names_detected_backbone(tmp_path):
    path = tmp_path / "net.safetensors"
    path.write_bytes(exported_bytes(models.create_model("resnet8", num_classes=3, rngs=nnx.Rngs(0))))
    model = build()
    before = variables_of(model)
    message = error_message(weights.load, model, str(path), keep="head/.*")
    assert message.startswith(f"{path} does not fit the model. Unexpected tensors: ")
    assert "Missing variables: stage2/conv1/bias" in message
    assert message.endswith("The tensors match resnet8 in the torchvision layout.")
    after = variables_of(model)
    assert all(np.array_equal(before[p], after[p]) for p in before)
    # The same backbone with another head gets no hint.
    message = error_message(weights.load, models.create_model("resnet8", num_classes=5, rngs=None), str(path))
    assert "fc.bias: (3,), but head/dense/bias is (5,)" in message
    assert message.endswith("variables that keep their value in `keep`.")
    # Tensors of an unknown network get no hint either.
    path.write_bytes(save({"x": np.ones(1, np.float32)}))
    message = error_message(weights.load, model, str(path), keep="head/.*")
    assert "Unexpected tensors: x." in message
    assert message.endswith("variables that keep their value in `keep`.")


def test_load_truncated_file(tmp_path):
    path = tmp_path / "net.safetensors"
    path.write_bytes(CONTENT[:-1])
    assert weights.resolve_weights(str(path)).sha256 != SHA256
    message = error_message(weights.load, build(), str(path))
    assert message.startswith(f"{path} is not a readable safetensors file: ")


def test_load_with_other_number_of_classes(tmp_path):
    path = tmp_path / "net.safetensors"
    path.write_bytes(CONTENT)
    model = build(classes=5)
    before = variables_of(model)
    message = error_message(weights.load, model, str(path))
    # The last layer of torchvision's VGG is classifier.6.
    assert "Shape mismatches: classifier.6." in message
    assert "classifier.6.bias: (3,), but head/dense/bias is (5,)" in message
    weights.load(model, str(path), keep="head/.*")
    after = variables_of(model)
    source = variables_of(randomized(build()))
    for path in after:
        expected = before if path.startswith("head/") else source
        np.testing.assert_array_equal(after[path], expected[path])


def test_load_keep_and_optional_with_head_norm(tmp_path):
    config = convnext.Variant((1, 1), (4, 6), size=3)
    path = tmp_path / "net.safetensors"
    source_model = randomized(build(config))
    path.write_bytes(exported_bytes(source_model, "timm"))
    model = build(config, classes=5)
    before = variables_of(model)
    weights.load(model, str(path), keep="head/(?!norm/).*", optional="head/norm/.*")
    after = variables_of(model)
    source = variables_of(source_model)
    assert {p for p in after if p.startswith("head/norm/")} == {"head/norm/scale", "head/norm/bias"}
    for p in after:
        np.testing.assert_array_equal(after[p], (before if p.startswith("head/dense/") else source)[p])
    # With `optional` alone, tensors that fit are loaded and other variables keep their value.
    weights.load(optional_only := build(config, classes=5), str(path), optional="head/.*")
    assert all(np.array_equal(value, after[p]) for p, value in variables_of(optional_only).items())
    # A model without the norm loads as well.
    without_norm = build(config, norm="none")
    weights.load(without_norm, str(path), keep="head/dense/.*", optional="head/norm/.*")
    np.testing.assert_array_equal(variables_of(without_norm)["stem/conv/kernel"], source["stem/conv/kernel"])
    # A file without the norm leaves the model's norm unchanged.
    tensors = weights.export_weights(without_norm, layouts("convnext", config)["timm"])
    tensors = {name: tensor for name, tensor in tensors.items() if "head" not in name}
    path.write_bytes(save(tensors))
    weights.load(model := build(config), str(path), keep="head/dense/.*", optional="head/norm/.*")
    np.testing.assert_array_equal(variables_of(model)["head/norm/scale"], np.ones(6))


# Other numbers of channels


CHANNELS = [
    (TINY, "stem/conv1/kernel"),
    (resnet.Variant((1,), (4,), bottleneck=False), "stem/unit/conv/kernel"),
    (convnext.Variant((1,), (4,), size=3), "stem/conv/kernel"),
]


@pytest.mark.parametrize(("config", "first"), CHANNELS, ids=["vgg", "resnet", "convnext"])
def test_load_adapts_rgb_weights_to_channels(config, first, tmp_path):
    path = tmp_path / "net.safetensors"
    source = randomized(build(config))
    path.write_bytes(exported_bytes(source))
    kernel = variables_of(source)[first]
    loaded = {}
    for channels in (1, 5):
        weights.load(model := build(config, in_channels=channels), str(path))
        loaded[channels] = model
        others = variables_of(model)
        adapted = others.pop(first)
        assert adapted.shape == (*kernel.shape[:2], channels, kernel.shape[3])
        assert all(np.array_equal(value, variables_of(source)[p]) for p, value in others.items())
        if channels == 1:
            np.testing.assert_allclose(adapted[:, :, 0], kernel[:, :, 0] + kernel[:, :, 1] + kernel[:, :, 2], rtol=1e-6)
        else:
            for c in range(5):
                np.testing.assert_allclose(adapted[:, :, c], kernel[:, :, c % 3] * 0.6, rtol=1e-6)
    images = np.random.default_rng(2).normal(size=(2, 16, 16, 1)).astype(np.float32)
    run = nnx.jit(lambda gray_model, rgb_model, x: (gray_model.features(x), rgb_model.features(jnp.repeat(x, 3, -1))))
    actual, expected = run(loaded[1], source, images)
    for stage, value in expected.items():
        np.testing.assert_allclose(actual[stage], value, rtol=1e-4, atol=1e-4 * np.abs(value).max())


def test_adapt_channels_preserves_sum():
    kernel = np.random.default_rng(0).normal(size=(3, 3, 3, 2)).astype(np.float32)
    np.testing.assert_array_equal(adapt_channels(kernel, 3), kernel)
    # An image with equal channels gives the same output as in RGB if each of the three is repeated equally often.
    for channels in (1, 6, 9):
        np.testing.assert_allclose(adapt_channels(kernel, channels).sum(2), kernel.sum(2), rtol=1e-5, atol=1e-6)


def test_load_adapts_rgb_weights_only(tmp_path):
    path = tmp_path / "net.safetensors"
    path.write_bytes(exported_bytes(build(in_channels=5)))
    message = error_message(weights.load, build(), str(path))
    assert "features.0.weight: (3, 3, 5, 4), but stem/conv1/kernel is (3, 3, 3, 4)" in message
