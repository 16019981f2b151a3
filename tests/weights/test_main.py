"""The command `python -m tljax.weights`: list, inspect, convert, and their errors."""

import json
import subprocess
import sys

import h5py
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.conftest import ROOT
from tests.models import zoo
from tests.weights.test_formats import pickled_tensor, write_legacy
from tljax import config as schema
from tljax import models, weights
from tljax.errors import UserError
from tljax.models import params as params_lib
from tljax.weights.__main__ import main
from tljax.weights.convert import convert

RESNET18 = zoo.Case("torchvision", "resnet18")


def vgg11_tensors():
    """Return float16 tensors of VGG-11 without its classifier; no other network has these names."""
    tensors = zoo.checkpoint_shapes(zoo.Case("torchvision", "vgg11"))
    return {n: np.ascontiguousarray(t, np.float16) for n, t in tensors.items() if n.startswith("features.")}


def random_vgg11_tensors():
    """Return the same tensors with random values."""
    rng = np.random.default_rng(0)
    return {n: rng.integers(0, 2**14, t.shape, np.uint16).view(np.float16) for n, t in vgg11_tensors().items()}


def assert_same_tensors(got, expected):
    """Assert that two mappings have the same names, dtypes and values."""
    assert sorted(got) == sorted(expected)
    for name, value in expected.items():
        assert got[name].dtype == value.dtype
        np.testing.assert_array_equal(got[name], value, err_msg=name)


def write_keras(path, tensors):
    """Write an HDF5 file as Keras did before Keras 3; keras-applications has such files."""
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
    """Write files that the tests only read, and return their folder."""
    folder = tmp_path_factory.mktemp("weights")
    save_file(zoo.checkpoint_tensors(RESNET18), folder / "resnet18.safetensors")
    save_file(vgg11_tensors(), folder / "vgg11.safetensors")
    save_file({"a[b]": np.ones(2, np.float32), ":x:": np.ones(())}, folder / "unknown.safetensors")
    (folder / "cut.safetensors").write_bytes((folder / "vgg11.safetensors").read_bytes()[:-1])
    return folder


@pytest.fixture
def command(capsys):
    """Run the command, and return its exit code, stdout and stderr."""

    def run(*arguments):
        code = main([str(a) for a in arguments])
        streams = capsys.readouterr()
        return code, streams.out, streams.err

    return run


def error_message(command, *arguments):
    """Return the one-line error of a command that prints nothing else and exits with 2."""
    code, out, err = command(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.endswith("\n")
    assert err.count("\n") == 1
    return err.removeprefix("error: ").rstrip("\n")


# list


def test_list_prints_full_names(command):
    code, out, _ = command("list")
    assert code == 0
    # Names are printed without ellipsis or line break, because users copy them into configs.
    assert {
        line.split()[0] for line in out.splitlines() if line.startswith((" torch", " hf", " keras", " vgg", " eff"))
    } == set(weights.CATALOG)
    assert f"{len(weights.CATALOG)} of {len(weights.CATALOG)}." in out
    assert "SHA-256 f37072fd" in out  # the columns at the right are printed too
    assert "bsd-3-clause" in out
    assert command() == (0, out, "")  # `list` is the default command


def test_list_filters_by_pattern(command):
    _, out, _ = command("list", "keras:*resnet50*")
    assert "keras:resnet50 " in out
    assert "keras:resnet50_notop" in out
    assert "resnet101" not in out
    assert f"2 of {len(weights.CATALOG)}." in out


def test_list_suggests_nearest_name(command):
    message = error_message(command, "list", "torchvision:resnet18.IMAGENET1K_V2")
    assert message == (
        'No published weights match "torchvision:resnet18.IMAGENET1K_V2"; '
        'did you mean "torchvision:resnet18.IMAGENET1K_V1"?'
    )


def test_command_help(command, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert "usage: python -m tljax.weights" in out
    assert all(name in out for name in ("list", "inspect", "convert"))
    with pytest.raises(SystemExit) as caught:
        main(["convrt"])
    assert caught.value.code == 2


def test_command_runs_as_module(folder):
    run = subprocess.run(
        [sys.executable, "-m", "tljax.weights", "inspect", str(folder / "nowhere.safetensors")],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr == f"error: There are no weights at {folder}/nowhere.safetensors.\n"


# inspect


def test_inspect_describes_file(command, folder):
    code, out, _ = command("inspect", folder / "vgg11.safetensors")
    assert code == 0
    rows = [line.split() for line in out.splitlines() if line.startswith(" features.")]
    assert rows[0] == ["features.0.bias", "64", "float16"]
    assert ["features.0.weight", "64×3×3×3", "float16"] in rows
    assert [r[0] for r in rows] == sorted((r[0] for r in rows), key=lambda n: (int(n.split(".")[1]), n))
    resolved = weights.resolve_weights(str(folder / "vgg11.safetensors"))
    for line in (
        f"file           {resolved.path}",
        f"SHA-256        {resolved.sha256}",
        "tensors        16 (16 float16), 9,220,480 values",
        "preprocessing  unknown: set model.preprocess",
        "backbone       vgg11 (torchvision layout)",
        "match          all tensors and variables match",
    ):
        assert f"  {line}\n" in out


def test_inspect_all_prints_every_tensor(command, folder):
    _, short, _ = command("inspect", folder / "resnet18.safetensors")
    _, whole, _ = command("inspect", folder / "resnet18.safetensors", "--all")
    assert "… 98 more (use --all)" in short
    assert "layer2.0.conv1.weight" not in short
    assert "layer2.0.conv1.weight" in whole
    for out in (short, whole):
        assert "122 (102 float32, 20 int64), 11,699,132 values" in out
        assert "backbone       resnet18 (torchvision layout)" in out


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda t: t.pop("features.3.bias"),
            "Unexpected tensors: none. Missing variables: stage2/conv1/bias. Shape mismatches: none.",
        ),
        (
            lambda t: t.update(extra=np.ones(3)),
            "Unexpected tensors: extra. Missing variables: none. Shape mismatches: none.",
        ),
        (
            lambda t: t.update({"features.3.bias": np.ones(7, np.float16)}),
            "Unexpected tensors: none. Missing variables: none. "
            "Shape mismatches: features.3.bias: (7,), but stage2/conv1/bias is (128,).",
        ),
    ],
)
def test_mismatches_are_listed_and_not_converted(command, tmp_path, change, words):
    tensors = vgg11_tensors()
    change(tensors)
    path = tmp_path / "changed.safetensors"
    save_file(tensors, path)
    code, out, _ = command("inspect", path)
    assert code == 0
    assert "  backbone       vgg11 (torchvision layout)\n" in out
    assert f"  match          {words}\n" in out
    message = error_message(command, "convert", path, tmp_path / "out.safetensors")
    assert message == f"{path} looks like vgg11, but does not fit it. {words}"
    assert [p.name for p in tmp_path.iterdir()] == ["changed.safetensors"]


def test_inspect_unknown_network(command, folder):
    code, out, err = command("inspect", folder / "unknown.safetensors")
    assert code == 2
    # rich would read brackets and colons as markup.
    assert " a[b] " in out
    assert " :x: " in out
    assert " scalar " in out
    assert err == "error: No backbone has tensors named like :x:, a[b].\n"


@pytest.mark.parametrize("name", ["inspect", "convert"])
def test_command_missing_or_truncated_file(command, folder, tmp_path, name):
    out = [] if name == "inspect" else [tmp_path / "out.safetensors"]
    assert error_message(command, name, tmp_path / "no.pth", *out) == f"There are no weights at {tmp_path}/no.pth."
    message = error_message(command, name, folder / "cut.safetensors", *out)
    assert message.startswith(f"{folder}/cut.safetensors is not a readable safetensors file: ")
    assert error_message(command, name, f"workdir:{tmp_path}", *out).startswith(f"{tmp_path} holds no finished run")
    assert list(tmp_path.iterdir()) == []


# convert


def test_convert_round_trip_is_exact(command, tmp_path):
    path, keras, back = (tmp_path / f"{name}.safetensors" for name in ("path", "keras", "back"))
    tensors = random_vgg11_tensors()
    save_file(tensors, path)
    code, out, _ = command("convert", path, keras, "--layout=keras")
    assert code == 0
    assert out == f"{keras}: 16 tensors of vgg11, from the torchvision layout to the keras layout.\n"
    converted = load_file(keras)
    assert converted["block1_conv1/kernel"].dtype == np.float16
    expected = tensors["features.0.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(converted["block1_conv1/kernel"], expected)
    code, out, _ = command("export", keras, back)
    assert code == 0
    assert out.endswith("from the keras layout to the torchvision layout.\n")
    assert_same_tensors(load_file(back), tensors)
    # A file can be converted to itself.
    assert command("convert", keras, keras)[0] == 0
    assert_same_tensors(load_file(keras), tensors)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["back.safetensors", "keras.safetensors", "path.safetensors"]


def test_convert_keeps_statistics_without_counters(command, folder, tmp_path):
    out = tmp_path / "out.safetensors"
    code, output, _ = command("convert", folder / "resnet18.safetensors", out, "--layout=keras")
    assert (code, output) == (0, f"{out}: 102 tensors of resnet18, from the torchvision layout to the keras layout.\n")
    tensors, converted = zoo.checkpoint_tensors(RESNET18), load_file(out)
    # torch's batch counters are left out.
    assert len(converted) == len([n for n in tensors if not n.endswith("num_batches_tracked")])
    np.testing.assert_array_equal(converted["conv1_conv/kernel"], tensors["conv1.weight"].transpose(2, 3, 1, 0))
    np.testing.assert_array_equal(converted["predictions/kernel"], tensors["fc.weight"].T)
    np.testing.assert_array_equal(converted["conv2_block1_1_bn/moving_variance"], tensors["layer1.0.bn1.running_var"])


def test_convert_from_torch_file(command, tmp_path):
    path, out = tmp_path / "vgg11.pth", tmp_path / "vgg11.safetensors"
    tensors = random_vgg11_tensors()
    state_dict, storages = {}, []
    for key, (name, value) in enumerate(tensors.items()):
        stride = tuple(s // value.itemsize for s in value.strides)
        state_dict[name] = pickled_tensor(value.shape, stride, kind="HalfStorage", key=str(key), count=value.size)
        storages.append((str(key), value.size, value.tobytes()))
    write_legacy(path, {"state_dict": state_dict, "epoch": 3}, storages)
    assert command("convert", path, out)[0] == 0
    assert_same_tensors(load_file(out), tensors)


def test_convert_from_keras_file(command, tmp_path):
    path, out = tmp_path / "densenet121.h5", tmp_path / "densenet121.safetensors"
    tensors = zoo.checkpoint_tensors(zoo.Case("keras", "DenseNet121"))
    write_keras(path, tensors)
    code, output, _ = command("convert", path, out)
    assert code == 0
    assert "of densenet121_keras, from the keras layout to the torchvision layout." in output
    converted = load_file(out)
    assert len(converted) == len(tensors)
    kernel = next(t for n, t in tensors.items() if n.startswith(("conv1_conv/", "conv1/conv/")))
    np.testing.assert_array_equal(converted["features.conv0.weight"], kernel.transpose(3, 2, 0, 1))
    np.testing.assert_array_equal(converted["classifier.weight"], tensors["predictions/kernel"].T)
    np.testing.assert_array_equal(
        converted["features.denseblock4.denselayer16.norm2.running_var"], tensors["conv5_block16_1_bn/moving_variance"]
    )


def test_inspect_and_export_finished_run(command, tiny, console, tmp_path):
    from tljax.run.train import train

    tiny.model.weights = None
    tiny.strategy.phases = tiny.strategy.phases[1:]
    tiny.train.epochs = 1
    result = train(schema.parse(tiny), console)
    source, out = f"workdir:{tmp_path / 'run'}", tmp_path / "run.safetensors"
    code, output, _ = command("inspect", source, "--all")
    assert code == 0
    assert " stem/unit/conv/kernel " in output
    assert f"  SHA-256        {result['parameters_digest']}\n" in output
    assert "  preprocessing  symmetric\n" in output
    code, output, _ = command("export", source, out)
    assert code == 0
    assert output.endswith("tensors of resnet8, from the tljax layout to the torchvision layout.\n")
    # The file gives a model exactly the variables of the run's best step.
    loaded = [models.create_model("resnet8", num_classes=3, rngs=None) for _ in range(2)]
    for model, name in zip(loaded, (source, str(out)), strict=True):
        weights.load(model, name)
    digests = {weights.params_hash(variables_of(model)) for model in loaded}
    assert digests == {result["parameters_digest"]}
    assert {"conv1.weight", "layer3.0.downsample.1.running_var", "fc.bias"} <= set(load_file(out))
    message = error_message(command, "export", source, tmp_path / "x.safetensors", "--layout=kears")
    assert message == 'resnet8 has no layout "kears"; did you mean "keras"?'


def variables_of(model):
    """Return the parameters and running statistics of a model by path."""
    _, params, stats = params_lib.flatten_model(model)
    return params | stats


def test_convert_refuses_unsupported_head(monkeypatch, tmp_path):
    # torchvision's VGG flattens 7×7 features; the hidden layer of a run can have pooled ones.
    run = weights.WeightSource("workdir:run", tmp_path, "0", None)
    variables = {"head/hidden0/kernel": np.ones((512, 8), np.float32)}
    config = {"model": {"backbone": "vgg11"}, "strategy": {"name": "scratch"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr("tljax.weights.convert.resolve_weights", lambda source: run)
    monkeypatch.setattr("tljax.weights.convert.open_weights", lambda weights: _Opened(variables))
    expected = r"^The torchvision layout cannot represent head/hidden0/kernel of shape \(512, 8\)\.$"
    with pytest.raises(UserError, match=expected):
        convert("workdir:run", tmp_path / "out.safetensors")
    assert convert("workdir:run", tmp_path / "out.safetensors", "keras").tensors == 1
    variables["head/norm/mean"] = np.ones(512, np.float32)
    with pytest.raises(UserError, match=r"^The keras layout has no names for head/norm/mean\.$"):
        convert("workdir:run", tmp_path / "other.safetensors", "keras")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "out.safetensors"]


class _Opened(dict):
    """Variables as `open_weights` would return them."""

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass


def test_convert_errors_leave_no_file(command, folder, tmp_path):
    source = folder / "vgg11.safetensors"
    out = tmp_path / "out.safetensors"
    message = error_message(command, "convert", source, out, "--layout=torchvison")
    assert message == 'vgg11 has no layout "torchvison"; did you mean "torchvision"?'
    message = error_message(command, "convert", source, tmp_path / "out.pth")
    assert message == f"{tmp_path}/out.pth must end in .safetensors."
    message = error_message(command, "convert", source, tmp_path / "no" / "out.safetensors")
    assert message.startswith(f"{tmp_path}/no/out.safetensors cannot be written: ")
    message = error_message(command, "convert", folder / "unknown.safetensors", out)
    assert message.startswith("No backbone has tensors named like ")
    assert list(tmp_path.iterdir()) == []
