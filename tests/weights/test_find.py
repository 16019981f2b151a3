"""Weights by every kind of name, and what loading them into models of other shapes does."""

import dataclasses
import functools
import hashlib

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save

from tests.weights.loopback import COMMIT, NAME, File
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
    return models.create_model(config, num_classes=classes, image_size=16, rngs=nnx.Rngs(0), **options)


def leaves(model):
    _, params, stats = params_lib.flatten_model(model)
    return {path: np.asarray(value) for path, value in (params | stats).items()}


def exported(model, layout="torchvision"):
    """A file's content."""
    return save(weights.export(model, layouts(model.family, model.config)[layout]))


def shuffled(model):
    """The model with a value of its own in every leaf."""
    rng = np.random.default_rng(1)
    params_lib.set_variables(
        model, {p: rng.uniform(0.5, 1.5, v.shape).astype(v.dtype) for p, v in leaves(model).items()}
    )
    return model


CONTENT = exported(shuffled(build()))
SHA256, MD5 = hashlib.sha256(CONTENT).hexdigest(), hashlib.md5(CONTENT).hexdigest()


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """`$TLJAX_WEIGHTS_DIR`, empty; beside it an empty cache."""
    monkeypatch.setenv("TLJAX_WEIGHTS_DIR", str(tmp_path / "weights"))
    monkeypatch.setenv("TLJAX_CACHE", str(tmp_path / "cache"))
    (tmp_path / "weights").mkdir()
    return tmp_path / "weights"


@pytest.fixture
def publish(monkeypatch):
    """Gives an entry of the catalogue another address and digest."""

    def publish(name, url, digest, **facts):
        entry = dataclasses.replace(weights.CATALOG[name], source=url, digest=digest, **facts)
        monkeypatch.setitem(weights.CATALOG, name, entry)

    return publish


@pytest.fixture
def hub(site, monkeypatch, tmp_path):
    """The loopback's Hub with the small network in it, instead of the real one."""
    site.repo[NAME] = site.files[f"/cdn/{NAME}"] = File(CONTENT)
    site.linked = {"X-Linked-ETag": f'"{SHA256}"', "X-Linked-Size": str(len(CONTENT))}
    here = functools.partial(from_hub, endpoint=site.url, cache_dir=tmp_path / "hub")
    monkeypatch.setattr("tljax.weights.hub.from_hub", here)
    return site


def refused(call, *arguments, **options):
    with pytest.raises(UserError) as caught:
        call(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Files


@pytest.mark.parametrize(
    ("name", "suffix", "algorithm", "digits"), [(TORCHVISION, ".pth", "sha256", 8), (KERAS, ".h5", "md5", 32)]
)
def test_a_published_file_is_known_by_its_digest_wherever_it_lies(name, suffix, algorithm, digits, publish, tmp_path):
    digest = hashlib.new(algorithm, CONTENT).hexdigest()[:digits]
    publish(name, "http://nowhere/else", digest)
    path = tmp_path / f"mine{suffix}"
    path.write_bytes(CONTENT)
    found, entry = weights.resolve_weights(str(path)), weights.CATALOG[name]
    assert (found.preprocess, found.backbone) == (entry.preprocess, entry.backbone)


def test_a_path_with_and_without_its_prefix(tmp_path):
    path = tmp_path / "net.safetensors"
    path.write_bytes(CONTENT)
    for source in (str(path), f"file:{path}"):
        found = weights.resolve_weights(source)
        assert (found.name, found.path, found.sha256) == (source, path, SHA256)
        assert (found.preprocess, found.backbone, found.revision) == (None, None, None)
        assert found.describe() == {"name": source, "sha256": SHA256}
        assert weights.resolve_weights(source, "caffe").preprocess == PRESETS["caffe"]
    assert refused(weights.resolve_weights, f"file:{path}x") == f"There are no weights at {path}x."
    assert refused(weights.resolve_weights, str(tmp_path)) == f"There are no weights at {tmp_path}."


def test_what_loads_is_what_was_saved(tmp_path):
    path = tmp_path / "net.safetensors"
    path.write_bytes(CONTENT)
    model = build()
    assert weights.load(model, str(path)).path == path
    expected = leaves(shuffled(build()))
    assert all(np.array_equal(value, expected[p]) for p, value in leaves(model).items())


def test_a_name_that_nobody_serves_lies_in_the_folder(folder, publish, monkeypatch):
    publish(LOCAL, "net.safetensors", SHA256)
    assert refused(weights.resolve_weights, LOCAL) == f"There are no weights at {folder}/net.safetensors."
    (folder / "net.safetensors").write_bytes(CONTENT)
    found = weights.resolve_weights(LOCAL)
    assert (found.path, found.sha256, found.backbone) == (folder / "net.safetensors", SHA256, "vgg16")
    assert found.preprocess == PRESETS["caffe"]
    # The same file by its path is known by its digest.
    assert weights.resolve_weights(str(found.path)).preprocess == PRESETS["caffe"]
    (folder / "net.safetensors").write_bytes(CONTENT + b" ")
    said = refused(weights.resolve_weights, LOCAL)
    assert said.startswith(f"{folder}/net.safetensors is not {LOCAL}: its SHA-256 is ")
    assert said.endswith(f", expected {SHA256}.")
    monkeypatch.delenv("TLJAX_WEIGHTS_DIR")
    assert (
        refused(weights.resolve_weights, LOCAL)
        == f"{LOCAL} needs TLJAX_WEIGHTS_DIR, the folder that has net.safetensors."
    )


# torchvision: and keras:


@pytest.mark.parametrize(
    ("name", "digest", "preprocess"),
    [(TORCHVISION, SHA256[:8], "torch"), (KERAS, MD5, "caffe")],
    ids=["torch", "keras"],
)
def test_published_weights(name, digest, preprocess, site, folder, publish, tmp_path):
    publish(name, f"{site.url}/models/net.safetensors", digest)
    site.files["/models/net.safetensors"] = File(CONTENT)
    # From the address into the cache, once.
    for _ in range(2):
        found = weights.resolve_weights(name)
        assert found.path.is_relative_to(tmp_path / "cache")
        assert (found.path.name, found.sha256, found.revision) == ("net.safetensors", SHA256, None)
    assert len(site.asked) == 1
    assert found.preprocess.same_values(PRESETS[preprocess])
    assert found.backbone == weights.CATALOG[name].backbone
    assert found.describe() == {"name": name, "sha256": SHA256}
    # A file in the folder comes first, and nothing is asked.
    kept = folder / "net.safetensors"
    kept.write_bytes(CONTENT)
    assert weights.resolve_weights(name).path == kept
    assert len(site.asked) == 1
    # It is not passed over in silence when it is another one.
    kept.write_bytes(CONTENT[:-1])
    said = refused(weights.resolve_weights, name)
    assert said.startswith(f"{kept} is not {name}: its digest is ")
    assert said.endswith(f", expected {digest}.")


def test_what_the_address_has_must_be_what_was_meant(site, folder, publish, tmp_path):
    url = f"{site.url}/net.safetensors"
    publish(TORCHVISION, url, SHA256[:8])
    site.files["/net.safetensors"] = File(CONTENT[:-1])
    said = refused(weights.resolve_weights, TORCHVISION)
    assert said.startswith(f"{url} is not the file that was meant: its SHA-256 is ")
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
    del site.files["/net.safetensors"]
    assert refused(weights.resolve_weights, TORCHVISION) == f"{url} cannot be downloaded: the server answers 404."


@pytest.mark.parametrize(
    ("slip", "name"),
    [
        ("torchvision:resnet18.IMAGENET1K_V2", TORCHVISION),
        ("keras:vgg16_no_top", "keras:vgg16_notop"),
        ("vgg16_imagenet_notopp", LOCAL),
    ],
)
def test_a_slip_in_a_name(slip, name):
    assert refused(weights.resolve_weights, slip).endswith(
        f'{slip}"; did you mean "{name}"?' if ":" in slip else f'"{name}"?'
    )


# hf:


def test_the_hub_tells_digest_and_commit(hub):
    found = weights.resolve_weights("hf:lab/net")
    assert found.describe() == {"name": "hf:lab/net", "sha256": SHA256, "revision": COMMIT}
    assert (found.preprocess, found.backbone) == (None, None)
    same = weights.resolve_weights(f"hf:lab/net@{COMMIT}:{NAME}", "symmetric")
    assert (same.path, same.revision, same.preprocess) == (found.path, COMMIT, PRESETS["symmetric"])
    model = build()
    weights.load(model, found)
    np.testing.assert_array_equal(leaves(model)["stem/conv1/bias"], leaves(shuffled(build()))["stem/conv1/bias"])


def test_a_repository_of_the_catalogue_brings_what_is_known(hub, monkeypatch):
    entry = dataclasses.replace(weights.CATALOG["hf:timm/resnet18.a1_in1k"], name="hf:lab/net", source="lab/net")
    monkeypatch.setitem(weights.CATALOG, "hf:lab/net", entry)
    found = weights.resolve_weights("hf:lab/net@main")
    assert (found.backbone, found.preprocess) == ("resnet18", entry.preprocess)
    assert found.preprocess.interpolation == "bicubic"
    assert 'was trained with preprocessing "torch"' in refused(weights.resolve_weights, "hf:lab/net", "symmetric")


def test_a_slip_in_a_repositorys_name(hub):
    said = refused(weights.resolve_weights, "hf:timm/resnet18_a1_in1k")
    assert said.startswith("There is no timm/resnet18_a1_in1k at http://127.0.0.1:")
    assert said.endswith('; did you mean "hf:timm/resnet18.a1_in1k"?')
    # What resembles nothing that is known gets no list of what is.
    assert refused(weights.resolve_weights, "hf:qqqqqqqq/zzzzzzzz").endswith("HF_TOKEN does not open it.")


# Preprocessing


def test_preprocessing_may_be_repeated_and_not_contradicted(folder, publish):
    publish(TORCHVISION, "http://127.0.0.1/net.safetensors", SHA256[:8], size=176, interpolation="bicubic")
    (folder / "net.safetensors").write_bytes(CONTENT)
    said = refused(weights.resolve_weights, TORCHVISION, "caffe")
    assert said == (
        f'{TORCHVISION} was trained with preprocessing "torch": leave model.preprocess unset instead of "caffe".'
    )
    # The same values; size and interpolation are still the publisher's.
    found = weights.resolve_weights(TORCHVISION, "torch").preprocess
    assert (found.name, found.size, found.interpolation) == ("torch", 176, "bicubic")
    assert (
        refused(weights.resolve_weights, TORCHVISION, "cafe")
        == 'There is no preprocessing "cafe"; did you mean "caffe"?'
    )


# What does not fit


def test_a_file_of_another_network_is_called_by_its_name(tmp_path):
    path = tmp_path / "net.safetensors"
    path.write_bytes(exported(models.create_model("resnet8", num_classes=3, rngs=nnx.Rngs(0))))
    model = build()
    before = leaves(model)
    said = refused(weights.load, model, str(path), keep="head/.*")
    assert said.startswith(f"{path} does not fit the model. Tensors without a place: ")
    assert "Leaves without a tensor: stage2/conv1/bias" in said
    assert said.endswith("The tensors are those of resnet8, in the names of torchvision.")
    after = leaves(model)
    assert all(np.array_equal(before[p], after[p]) for p in before)
    # The right network under another head: the name would say nothing new.
    said = refused(weights.load, models.create_model("resnet8", num_classes=5, rngs=None), str(path))
    assert "fc.bias: (3,), but head/dense/bias is (5,)" in said
    assert said.endswith("in `keep` the leaves that stay.")
    # Tensors of no network at all.
    path.write_bytes(save({"x": np.ones(1, np.float32)}))
    said = refused(weights.load, model, str(path), keep="head/.*")
    assert "Tensors without a place: x." in said
    assert said.endswith("in `keep` the leaves that stay.")


def test_a_truncated_file(tmp_path):
    path = tmp_path / "net.safetensors"
    path.write_bytes(CONTENT[:-1])
    assert weights.resolve_weights(str(path)).sha256 != SHA256
    said = refused(weights.load, build(), str(path))
    assert said.startswith(f"{path} is not a readable safetensors file: ")


def test_another_number_of_classes(tmp_path):
    path = tmp_path / "net.safetensors"
    path.write_bytes(CONTENT)
    model = build(classes=5)
    before = leaves(model)
    said = refused(weights.load, model, str(path))
    # torchvision's VGG ends in classifier.6.
    assert "Wrong shapes: classifier.6." in said
    assert "classifier.6.bias: (3,), but head/dense/bias is (5,)" in said
    weights.load(model, str(path), keep="head/.*")
    after, source = leaves(model), leaves(shuffled(build()))
    for path in after:
        expected = before if path.startswith("head/") else source
        np.testing.assert_array_equal(after[path], expected[path])


def test_a_norm_before_the_classifier_is_taken_and_the_classifier_kept(tmp_path):
    config, path = convnext.Variant((1, 1), (4, 6), size=3), tmp_path / "net.safetensors"
    source = shuffled(build(config))
    path.write_bytes(exported(source, "timm"))
    model = build(config, classes=5)
    before = leaves(model)
    weights.load(model, str(path), keep="head/(?!norm/).*", optional="head/norm/.*")
    after, source = leaves(model), leaves(source)
    assert {p for p in after if p.startswith("head/norm/")} == {"head/norm/scale", "head/norm/bias"}
    for p in after:
        np.testing.assert_array_equal(after[p], (before if p.startswith("head/dense/") else source)[p])
    # Optional alone: what fits is filled, and what does not stays.
    weights.load(again := build(config, classes=5), str(path), optional="head/.*")
    assert all(np.array_equal(value, after[p]) for p, value in leaves(again).items())
    # A model without the norm loads as well.
    weights.load(bare := build(config, norm="none"), str(path), keep="head/dense/.*", optional="head/norm/.*")
    np.testing.assert_array_equal(leaves(bare)["stem/conv/kernel"], source["stem/conv/kernel"])
    # And a file without it leaves the norm as it was.
    tensors = {n: t for n, t in weights.export(bare, layouts("convnext", config)["timm"]).items() if "head" not in n}
    path.write_bytes(save(tensors))
    weights.load(model := build(config), str(path), keep="head/dense/.*", optional="head/norm/.*")
    np.testing.assert_array_equal(leaves(model)["head/norm/scale"], np.ones(6))


# Other numbers of channels


CHANNELS = [
    (TINY, "stem/conv1/kernel"),
    (resnet.Variant((1,), (4,), bottleneck=False), "stem/unit/conv/kernel"),
    (convnext.Variant((1,), (4,), size=3), "stem/conv/kernel"),
]


@pytest.mark.parametrize(("config", "first"), CHANNELS, ids=["vgg", "resnet", "convnext"])
def test_rgb_weights_fit_one_channel_and_five(config, first, tmp_path):
    path = tmp_path / "net.safetensors"
    source = shuffled(build(config))
    path.write_bytes(exported(source))
    kernel, loaded = leaves(source)[first], {}
    for channels in (1, 5):
        weights.load(model := build(config, in_channels=channels), str(path))
        loaded[channels] = model
        others = leaves(model)
        made = others.pop(first)
        assert made.shape == (*kernel.shape[:2], channels, kernel.shape[3])
        assert all(np.array_equal(value, leaves(source)[p]) for p, value in others.items())
        if channels == 1:
            np.testing.assert_allclose(made[:, :, 0], kernel[:, :, 0] + kernel[:, :, 1] + kernel[:, :, 2], rtol=1e-6)
        else:
            for c in range(5):
                np.testing.assert_allclose(made[:, :, c], kernel[:, :, c % 3] * 0.6, rtol=1e-6)
    grey = np.random.default_rng(2).normal(size=(2, 16, 16, 1)).astype(np.float32)
    run = nnx.jit(lambda grey, colour, x: (grey.features(x), colour.features(jnp.repeat(x, 3, -1))))
    ours, theirs = run(loaded[1], source, grey)
    for stage in theirs:
        np.testing.assert_allclose(ours[stage], theirs[stage], rtol=1e-4, atol=1e-4 * np.abs(theirs[stage]).max())


def test_the_rule_for_channels_keeps_the_sum_over_them():
    kernel = np.random.default_rng(0).normal(size=(3, 3, 3, 2)).astype(np.float32)
    np.testing.assert_array_equal(adapt_channels(kernel, 3), kernel)
    # A picture that is the same in all channels sees as much as in RGB, where each of the three comes equally often.
    for channels in (1, 6, 9):
        np.testing.assert_allclose(adapt_channels(kernel, channels).sum(2), kernel.sum(2), rtol=1e-5, atol=1e-6)


def test_weights_of_other_channels_are_not_adapted(tmp_path):
    path = tmp_path / "net.safetensors"
    path.write_bytes(exported(build(in_channels=5)))
    said = refused(weights.load, build(), str(path))
    assert "features.0.weight: (3, 3, 5, 4), but stem/conv1/kernel is (3, 3, 3, 4)" in said
