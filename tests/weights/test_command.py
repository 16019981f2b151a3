"""`python -m tljax.weights`: what it says about files, what it makes of them, and what it refuses."""

import json
import subprocess
import sys

import h5py
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.conftest import ROOT
from tests.models import zoo
from tests.weights.test_files import legacy, tensor
from tljax import config as schema
from tljax import models, weights
from tljax.errors import UserError
from tljax.models import params as params_lib
from tljax.weights.__main__ import main
from tljax.weights.convert import convert

RESNET18 = zoo.Case("torchvision", "resnet18")


def trunk():
    """VGG-11 without its classifier: names that no other network has."""
    tensors = zoo.shapes_of(zoo.Case("torchvision", "vgg11"))
    return {n: np.ascontiguousarray(t, np.float16) for n, t in tensors.items() if n.startswith("features.")}


def values():
    """The same with random values."""
    rng = np.random.default_rng(0)
    return {n: rng.integers(0, 2**14, t.shape, np.uint16).view(np.float16) for n, t in trunk().items()}


def same(got, expected):
    assert sorted(got) == sorted(expected)
    for name, value in expected.items():
        assert got[name].dtype == value.dtype
        np.testing.assert_array_equal(got[name], value, err_msg=name)


def write_keras(path, tensors):
    """A file as Keras wrote them before Keras 3, and keras-applications has them."""
    with h5py.File(path, "w") as file:
        layers = {}
        for name, value in tensors.items():
            layers.setdefault(name.rpartition("/")[0], {})[f"{name}:0"] = value
        file.attrs["layer_names"] = [layer.encode() for layer in layers]
        for layer, variables in layers.items():
            group = file.create_group(layer)
            group.attrs["weight_names"] = [name.encode() for name in variables]
            for name, value in variables.items():
                group[name] = value


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Files that the tests read and do not change."""
    folder = tmp_path_factory.mktemp("weights")
    save_file(zoo.tensors_of(RESNET18), folder / "resnet18.safetensors")
    save_file(trunk(), folder / "vgg11.safetensors")
    save_file({"a[b]": np.ones(2, np.float32), ":x:": np.ones(())}, folder / "unknown.safetensors")
    (folder / "cut.safetensors").write_bytes((folder / "vgg11.safetensors").read_bytes()[:-1])
    return folder


@pytest.fixture
def command(capsys):
    """Runs the command: exit code, and what it said on either stream."""

    def run(*arguments):
        code = main([str(a) for a in arguments])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def refused(command, *arguments):
    """The one sentence with which it is refused, with exit code 2 and nothing else said."""
    code, out, err = command(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.endswith("\n")
    assert err.count("\n") == 1
    return err.removeprefix("error: ").rstrip("\n")


# list


def test_the_list_shows_every_name_whole(command):
    code, out, _ = command("list")
    assert code == 0
    # What a row begins with can be copied into a config: no ellipsis, no line break.
    assert {
        line.split()[0] for line in out.splitlines() if line.startswith((" torch", " hf", " keras", " vgg"))
    } == set(weights.CATALOG)
    assert f"{len(weights.CATALOG)} of {len(weights.CATALOG)}." in out
    assert "SHA-256 f37072fd" in out  # the columns at the right are there too
    assert "bsd-3-clause" in out
    assert command() == (0, out, "")  # it is the default


def test_a_pattern_selects(command):
    _, out, _ = command("list", "keras:*resnet50*")
    assert "keras:resnet50 " in out
    assert "keras:resnet50_notop" in out
    assert "resnet101" not in out
    assert f"2 of {len(weights.CATALOG)}." in out


def test_no_match_names_the_nearest(command):
    said = refused(command, "list", "torchvision:resnet18.IMAGENET1K_V2")
    assert said == (
        'No known weights match "torchvision:resnet18.IMAGENET1K_V2"; '
        'did you mean "torchvision:resnet18.IMAGENET1K_V1"?'
    )


def test_help(command, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert "usage: python -m tljax.weights" in out
    assert all(name in out for name in ("list", "inspect", "convert"))
    with pytest.raises(SystemExit) as caught:
        main(["convrt"])
    assert caught.value.code == 2


def test_it_runs_as_a_module(folder):
    run = subprocess.run(
        [sys.executable, "-m", "tljax.weights", "inspect", str(folder / "nowhere.safetensors")],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr == f"error: There are no weights at {folder}/nowhere.safetensors.\n"


# inspect


def test_a_file_is_described(command, folder):
    code, out, _ = command("inspect", folder / "vgg11.safetensors")
    assert code == 0
    rows = [line.split() for line in out.splitlines() if line.startswith(" features.")]
    assert rows[0] == ["features.0.bias", "64", "float16"]
    assert ["features.0.weight", "64×3×3×3", "float16"] in rows
    assert [r[0] for r in rows] == sorted((r[0] for r in rows), key=lambda n: (int(n.split(".")[1]), n))
    found = weights.resolve_weights(str(folder / "vgg11.safetensors"))
    for line in (
        f"file           {found.path}",
        f"SHA-256        {found.sha256}",
        "tensors        16 (16 float16), 9,220,480 numbers",
        "preprocessing  unknown: set model.preprocess",
        "backbone       vgg11, in the names of torchvision",
        "fit            every tensor has its place",
    ):
        assert f"  {line}\n" in out


def test_many_tensors_are_cut_unless_all_are_asked_for(command, folder):
    _, short, _ = command("inspect", folder / "resnet18.safetensors")
    _, whole, _ = command("inspect", folder / "resnet18.safetensors", "--all")
    assert "… 98 more (--all shows them)" in short
    assert "layer2.0.conv1.weight" not in short
    assert "layer2.0.conv1.weight" in whole
    for out in (short, whole):
        assert "122 (102 float32, 20 int64), 11,699,132 numbers" in out
        assert "backbone       resnet18, in the names of torchvision" in out


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda t: t.pop("features.3.bias"),
            "Tensors without a place: none. Leaves without a tensor: stage2/conv1/bias. Wrong shapes: none.",
        ),
        (
            lambda t: t.update(extra=np.ones(3)),
            "Tensors without a place: extra. Leaves without a tensor: none. Wrong shapes: none.",
        ),
        (
            lambda t: t.update({"features.3.bias": np.ones(7, np.float16)}),
            "Tensors without a place: none. Leaves without a tensor: none. "
            "Wrong shapes: features.3.bias: (7,), but stage2/conv1/bias is (128,).",
        ),
    ],
)
def test_what_would_not_fit_is_listed_and_not_converted(command, tmp_path, change, words):
    tensors = trunk()
    change(tensors)
    path = tmp_path / "changed.safetensors"
    save_file(tensors, path)
    code, out, _ = command("inspect", path)
    assert code == 0
    assert "  backbone       vgg11, in the names of torchvision\n" in out
    assert f"  fit            {words}\n" in out
    said = refused(command, "convert", path, tmp_path / "out.safetensors")
    assert said == f"{path} looks like vgg11, but does not fit it. {words}"
    assert [p.name for p in tmp_path.iterdir()] == ["changed.safetensors"]


def test_a_network_that_is_not_known(command, folder):
    code, out, err = command("inspect", folder / "unknown.safetensors")
    assert code == 2
    # Brackets and colons are markup to the library that prints.
    assert " a[b] " in out
    assert " :x: " in out
    assert " scalar " in out
    assert err == "error: No network here has tensors named like :x:, a[b].\n"


@pytest.mark.parametrize("name", ["inspect", "convert"])
def test_what_is_not_there_or_not_whole(command, folder, tmp_path, name):
    out = [] if name == "inspect" else [tmp_path / "out.safetensors"]
    assert refused(command, name, tmp_path / "no.pth", *out) == f"There are no weights at {tmp_path}/no.pth."
    said = refused(command, name, folder / "cut.safetensors", *out)
    assert said.startswith(f"{folder}/cut.safetensors is not a readable safetensors file: ")
    assert refused(command, name, f"workdir:{tmp_path}", *out).startswith(f"{tmp_path} holds no finished run")
    assert list(tmp_path.iterdir()) == []


# convert


def test_there_and_back_to_the_bit(command, tmp_path):
    path, keras, back = (tmp_path / f"{name}.safetensors" for name in ("path", "keras", "back"))
    theirs = values()
    save_file(theirs, path)
    code, out, _ = command("convert", path, keras, "--layout=keras")
    assert code == 0
    assert out == f"{keras}: 16 tensors of vgg11, from the names of torchvision into those of keras.\n"
    ours = load_file(keras)
    assert ours["block1_conv1/kernel"].dtype == np.float16
    np.testing.assert_array_equal(ours["block1_conv1/kernel"], theirs["features.0.weight"].transpose(2, 3, 1, 0))
    code, out, _ = command("export", keras, back)
    assert code == 0
    assert out.endswith("from the names of keras into those of torchvision.\n")
    same(load_file(back), theirs)
    # A file may be read and replaced in one go.
    assert command("convert", keras, keras)[0] == 0
    same(load_file(keras), theirs)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["back.safetensors", "keras.safetensors", "path.safetensors"]


def test_statistics_are_taken_along_and_counters_left(command, folder, tmp_path):
    out = tmp_path / "out.safetensors"
    code, said, _ = command("convert", folder / "resnet18.safetensors", out, "--layout=keras")
    assert (code, said) == (0, f"{out}: 102 tensors of resnet18, from the names of torchvision into those of keras.\n")
    theirs, ours = zoo.tensors_of(RESNET18), load_file(out)
    # torch's counters have no place in our networks.
    assert len(ours) == len([n for n in theirs if not n.endswith("num_batches_tracked")])
    np.testing.assert_array_equal(ours["conv1_conv/kernel"], theirs["conv1.weight"].transpose(2, 3, 1, 0))
    np.testing.assert_array_equal(ours["predictions/kernel"], theirs["fc.weight"].T)
    np.testing.assert_array_equal(ours["conv2_block1_1_bn/moving_variance"], theirs["layer1.0.bn1.running_var"])


def test_from_torchs_own_file(command, tmp_path):
    path, out = tmp_path / "vgg11.pth", tmp_path / "vgg11.safetensors"
    theirs, pickled, storages = values(), {}, []
    for key, (name, value) in enumerate(theirs.items()):
        stride = tuple(s // value.itemsize for s in value.strides)
        pickled[name] = tensor(value.shape, stride, kind="HalfStorage", key=str(key), count=value.size)
        storages.append((str(key), value.size, value.tobytes()))
    legacy(path, {"state_dict": pickled, "epoch": 3}, storages)
    assert command("convert", path, out)[0] == 0
    same(load_file(out), theirs)


def test_from_a_keras_file(command, tmp_path):
    path, out = tmp_path / "densenet121.h5", tmp_path / "densenet121.safetensors"
    theirs = zoo.tensors_of(zoo.Case("keras", "DenseNet121"))
    write_keras(path, theirs)
    code, said, _ = command("convert", path, out)
    assert code == 0
    assert "of densenet121_keras, from the names of keras into those of torchvision." in said
    ours = load_file(out)
    assert len(ours) == len(theirs)
    kernel = next(t for n, t in theirs.items() if n.startswith(("conv1_conv/", "conv1/conv/")))
    np.testing.assert_array_equal(ours["features.conv0.weight"], kernel.transpose(3, 2, 0, 1))
    np.testing.assert_array_equal(ours["classifier.weight"], theirs["predictions/kernel"].T)
    np.testing.assert_array_equal(
        ours["features.denseblock4.denselayer16.norm2.running_var"], theirs["conv5_block16_1_bn/moving_variance"]
    )


def test_a_finished_run_is_inspected_and_exported(command, tiny, console, tmp_path):
    from tljax.run.train import train

    tiny.model.weights = None
    tiny.strategy.phases = tiny.strategy.phases[1:]
    tiny.train.epochs = 1
    result = train(schema.parse(tiny), console)
    source, out = f"workdir:{tmp_path / 'run'}", tmp_path / "run.safetensors"
    code, said, _ = command("inspect", source, "--all")
    assert code == 0
    assert " stem/unit/conv/kernel " in said
    assert f"  SHA-256        {result['parameters_digest']}\n" in said
    assert "  preprocessing  symmetric\n" in said
    code, said, _ = command("export", source, out)
    assert code == 0
    assert said.endswith("tensors of resnet8, from the names of tljax into those of torchvision.\n")
    # The file fills a model with the very leaves that the run's best step has.
    filled = [models.create_model("resnet8", num_classes=3, rngs=None) for _ in range(2)]
    for model, name in zip(filled, (source, str(out)), strict=True):
        weights.load(model, name)
    digests = {weights.params_hash(leaves_of(model)) for model in filled}
    assert digests == {result["parameters_digest"]}
    assert {"conv1.weight", "layer3.0.downsample.1.running_var", "fc.bias"} <= set(load_file(out))
    said = refused(command, "export", source, tmp_path / "x.safetensors", "--layout=kears")
    assert said == 'resnet8 has no layout "kears"; did you mean "keras"?'


def leaves_of(model):
    _, params, stats = params_lib.flatten_model(model)
    return params | stats


def test_a_head_that_the_library_has_no_form_for(monkeypatch, tmp_path):
    # torchvision's VGG flattens 7×7 places; a run's hidden layer may stand on one.
    run = weights.WeightSource("workdir:run", tmp_path, "0", None)
    leaves = {"head/hidden0/kernel": np.ones((512, 8), np.float32)}
    config = {"model": {"backbone": "vgg11"}, "strategy": {"name": "scratch"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr("tljax.weights.convert.resolve_weights", lambda source: run)
    monkeypatch.setattr("tljax.weights.convert.open_weights", lambda found: _Opened(leaves))
    with pytest.raises(UserError, match=r"^torchvision has no form for head/hidden0/kernel of shape \(512, 8\)\.$"):
        convert("workdir:run", tmp_path / "out.safetensors")
    assert convert("workdir:run", tmp_path / "out.safetensors", "keras").tensors == 1
    leaves["head/norm/mean"] = np.ones(512, np.float32)
    with pytest.raises(UserError, match=r"^keras has no names for head/norm/mean\.$"):
        convert("workdir:run", tmp_path / "other.safetensors", "keras")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "out.safetensors"]


class _Opened(dict):
    """Leaves as if they had been opened."""

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass


def test_what_is_not_converted_leaves_nothing(command, folder, tmp_path):
    source = folder / "vgg11.safetensors"
    out = tmp_path / "out.safetensors"
    said = refused(command, "convert", source, out, "--layout=torchvison")
    assert said == 'vgg11 has no layout "torchvison"; did you mean "torchvision"?'
    assert refused(command, "convert", source, tmp_path / "out.pth") == f"{tmp_path}/out.pth must end in .safetensors."
    said = refused(command, "convert", source, tmp_path / "no" / "out.safetensors")
    assert said.startswith(f"{tmp_path}/no/out.safetensors cannot be written: ")
    said = refused(command, "convert", folder / "unknown.safetensors", out)
    assert said.startswith("No network here has tensors named like ")
    assert list(tmp_path.iterdir()) == []
