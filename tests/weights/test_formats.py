"""Readers of foreign files: names and values are right, tensors are read lazily, and no code is executed."""

import io
import os
import pickle
import tracemalloc
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as stnp

from tljax.errors import UserError
from tljax.weights.formats import open_tensors, write_safetensors
from tljax.weights.formats.keras_h5 import number_from_one
from tljax.weights.formats.torch_pickle import LEGACY_MAGIC, open_torch, read_without_torch

GOLDEN = Path(__file__).parents[1] / "golden"
TORCH = ("torch_zip.pth", "torch_legacy.pth", "torch_nested.pth")
KERAS = ("keras_old.h5", "keras_legacy.h5", "keras3_legacy.h5", "keras3.weights.h5")
FEW = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
DTYPES = (np.float32, np.float16, np.float64, np.int64, np.uint8, np.bool_, ml_dtypes.bfloat16)


def golden(name):
    """Return the arrays of a golden .npz file."""
    with np.load(GOLDEN / name) as file:
        return dict(file)


def read(path):
    """Return {name: array} of a file."""
    with open_tensors(path) as tensors:
        return {name: np.asarray(tensor) for name, tensor in tensors.items()}


def read_with_torch(path):
    pytest.importorskip("torch")
    return open_torch(path)


def error_message(opener, path):
    """Return the one-line message of the error that the file raises."""
    with pytest.raises(UserError) as caught:
        opener(path)
    message = str(caught.value)
    assert str(path) in message
    assert message.endswith(".")
    assert "\n" not in message
    return message


def assert_same_tensors(got, expected):
    """Assert that two mappings have the same names, shapes and values."""
    assert sorted(got) == sorted(expected)
    for name, value in expected.items():
        assert got[name].shape == value.shape
        np.testing.assert_array_equal(np.asarray(got[name]).astype(value.dtype), value, err_msg=name)


# torch


@pytest.mark.parametrize("reader", [read_without_torch, read_with_torch])
@pytest.mark.parametrize("name", TORCH)
def test_open_torch_reads_saved_tensors(name, reader):
    tensors = reader(GOLDEN / name)
    assert_same_tensors(tensors, golden("torch_files.npz"))
    assert tensors["bfloat16"].dtype == ml_dtypes.bfloat16 == np.asarray(tensors["bfloat16"]).dtype
    assert tensors["half"].dtype == np.float16 == np.asarray(tensors["half"]).dtype
    assert "mask_values" not in tensors


@pytest.mark.parametrize("name", ["torch_zip.pth", "torch_legacy.pth"])
def test_read_without_torch_shares_tied_storage(name):
    tensors = read_without_torch(GOLDEN / name)
    assert np.shares_memory(tensors["tied.a"].read(), tensors["tied.b"].read())
    assert not np.asarray(tensors["view"]).flags.c_contiguous


class Storage:
    """Stand-in for torch's storage in the pickles of these tests."""

    def __init__(self, kind, key, count, *view):
        self.pid = ("storage", kind, key, "cpu", count, *view)


class Global:
    """Pickles as a global of torch, or as a call of it with `args`, without importing torch."""

    def __init__(self, name, args=None):
        self.name, self.args = name, args


class Pickler(pickle._Pickler):
    def persistent_id(self, value):
        return value.pid if isinstance(value, Storage) else None

    def save(self, value, save_persistent_id=True):
        if not isinstance(value, Global):
            return super().save(value, save_persistent_id)
        self.write(b"c" + value.name.replace(" ", "\n").encode() + b"\n")
        if value.args is not None:
            super().save(value.args)
            self.write(b"R")


def pickle_bytes(value):
    file = io.BytesIO()
    Pickler(file, protocol=2).dump(value)
    return file.getvalue()


def pickled_tensor(
    size, stride, offset=0, kind="FloatStorage", key="0", count=6, view=(), function="_rebuild_tensor_v2"
):
    """Return a stand-in that pickles as a torch tensor in the storage `key` of `count` elements."""
    storage = Storage(Global(f"torch {kind}"), key, count, *view)
    return Global(f"torch._utils {function}", (storage, offset, size, stride, False, {}))


SIX = np.arange(6, dtype="<f4").tobytes()


def write_zip(path, value, records=(("data/0", SIX),), compression=zipfile.ZIP_STORED):
    """Write a checkpoint as `torch.save` does: a pickle of `value`, and the records of its storages."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", value if isinstance(value, bytes) else pickle_bytes(value))
        for name, content in records:
            archive.writestr(f"archive/{name}", content)
    return path


def write_legacy(path, value, storages=(("0", 6, SIX),)):
    """Write a checkpoint in torch's legacy format; `storages` are (key, number of elements, bytes)."""
    value = value if isinstance(value, bytes) else pickle_bytes(value)
    keys = [key for key, _, _ in storages]
    data = b"".join(count.to_bytes(8, "little") + content for _, count, content in storages)
    header = LEGACY_MAGIC + pickle_bytes(1001) + pickle_bytes({"little_endian": True})
    path.write_bytes(header + value + pickle_bytes(keys) + data)
    return path


BOTH_FORMATS = pytest.mark.parametrize("write", [write_zip, write_legacy])


@BOTH_FORMATS
def test_read_without_torch_offset_and_stride(write, tmp_path):
    path = write(tmp_path / "a.pth", {"model": {"w": pickled_tensor((2, 2), (1, 2), 1), "n": 3}, "epoch": 1})
    assert_same_tensors(read_without_torch(path), {"w": np.float32([[1, 3], [2, 4]])})


def test_read_without_torch_storage_views(tmp_path):
    view = pickled_tensor((2,), (1,), 1, view=(("key", 2, 4),), function="_rebuild_tensor")
    parameter = Global("torch._utils _rebuild_parameter", (view, True, {}))
    path = write_legacy(tmp_path / "a.pth", {"_orig_mod.w": parameter})
    assert_same_tensors(read_without_torch(path), {"w": np.float32([3, 4])})


def test_read_without_torch_big_endian(tmp_path):
    floats = np.arange(6, dtype=">f4").tobytes()
    bfloats = np.array([0x3F80, 0x4000], ">u2").tobytes()
    value = {"w": pickled_tensor((6,), (1,)), "s": pickled_tensor((2,), (1,), kind="BFloat16Storage", key="1", count=2)}
    path = write_zip(tmp_path / "a.pth", value, (("data/0", floats), ("data/1", bfloats), ("byteorder", b"big")))
    assert_same_tensors(read_without_torch(path), {"w": np.arange(6, dtype=np.float32), "s": np.float32([1, 2])})


@BOTH_FORMATS
@pytest.mark.parametrize(
    ("size", "stride", "offset"),
    [((7,), (1,), 0), ((2,), (1,), 5), ((2,), (-1,), 3), ((1,), (1,), -1), ((10**9,), (0,), 0), ((2**63,), (1,), 0)],
)
def test_read_without_torch_refuses_out_of_bounds(write, size, stride, offset, tmp_path):
    path = write(tmp_path / "a.pth", {"w": pickled_tensor(size, stride, offset)})
    assert "a.pth" in error_message(read_without_torch, path)


class System:
    """Pickles as a call of os.system."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def attacks(mark):
    """Return {name of the global: pickle} of pickles that create the file `mark` or call a forbidden global."""
    code = f"open({str(mark)!r}, 'w')"
    return {
        "posix.system": pickle.dumps({"w": System(f"touch {mark}")}, 2),
        "posix.popen": b"c" + f"posix\npopen\n(S'touch {mark}'\ntR.".encode(),
        "builtins.eval": b"cbuiltins\neval\n(S" + repr(code).encode() + b"\ntR.",
        "builtins.getattr": b"cbuiltins\ngetattr\n(ccollections\nOrderedDict\nS'__init__'\ntR.",
        "numpy._core.multiarray._reconstruct": pickle.dumps({"w": np.ones(2)}, 2),
        "subprocess.Popen": b"(csubprocess\nPopen\n(S'touch'\nS'%s'\nltR." % str(mark).encode(),
        "torch.load": b"ctorch\nload\n(S'other.pth'\ntR.",
    }


@BOTH_FORMATS
@pytest.mark.parametrize("reader", [read_without_torch, read_with_torch])
@pytest.mark.parametrize("name", attacks("mark"))
def test_open_torch_executes_no_code(name, reader, write, tmp_path):
    mark = tmp_path / "executed"
    path = write(tmp_path / "evil.pth", attacks(mark)[name])
    message = error_message(reader, path)
    if reader is read_without_torch:
        assert f"imports {name}, " in message
        assert "nothing was executed" in message
    assert not mark.exists()


def test_attack_works_on_plain_pickle(tmp_path):
    pickle.loads(attacks(tmp_path / "executed")["posix.system"])
    assert (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (b"\x80\x02r\xff\xff\xff\x7f.", "a memo index beyond the file"),
        (b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x0f.", "bytes8"),
        ({"epoch": 3}, "has no state dict with tensors"),
        ([1, 2], "has no state dict with tensors"),
        ({"w": pickled_tensor((6,), (1,), key="7")}, "archive/data/7"),
    ],
)
def test_read_without_torch_refuses_bombs_and_no_tensors(value, words, tmp_path):
    assert words in error_message(read_without_torch, write_zip(tmp_path / "a.pth", value))


@pytest.mark.parametrize("reader", [read_without_torch, read_with_torch])
def test_open_torch_refuses_other_zip_files(reader, tmp_path):
    weights = {"w": pickled_tensor((6,), (1,))}
    compressed = write_zip(tmp_path / "a.pth", weights, compression=zipfile.ZIP_DEFLATED)
    assert "is compressed or truncated" in error_message(reader, compressed)
    script = write_zip(tmp_path / "b.pt", weights, (("code/__torch__.py", b""),))
    assert "TorchScript program, which is not executed" in error_message(reader, script)
    with zipfile.ZipFile(tmp_path / "c.pt", "w") as archive:
        archive.writestr("notes.txt", "hello")
    assert "that torch.save did not write" in error_message(reader, tmp_path / "c.pt")


# Keras


@pytest.mark.parametrize("name", KERAS)
def test_open_keras_h5_all_file_structures(name):
    assert_same_tensors(read(GOLDEN / name), golden("keras_files.npz"))


def test_open_keras_h5_without_layer_names(tmp_path):
    h5py = pytest.importorskip("h5py")
    rng = np.random.default_rng(0)
    values = {f"conv2d_{i}/kernel": rng.normal(size=(1, 1, 2, 2)) for i in range(11)}
    values |= {f"batch_normalization/{v}": rng.normal(size=2) for v in ("beta", "moving_mean", "moving_variance")}
    with h5py.File(tmp_path / "a.weights.h5", "w") as file:
        for i in range(11):
            file[f"_layer_checkpoint_dependencies/conv2d_{i}/vars/0"] = values[f"conv2d_{i}/kernel"]
        for i, name in enumerate(("beta", "moving_mean", "moving_variance")):
            file[f"_layer_checkpoint_dependencies/batch_normalization/vars/{i}"] = values[f"batch_normalization/{name}"]
        file["_layer_checkpoint_dependencies/dropout/seed_generator/vars/0"] = np.zeros(2, np.uint32)
        file["optimizer/vars/0"] = np.zeros(())
    assert_same_tensors(read(tmp_path / "a.weights.h5"), values)


def test_open_keras_h5_whole_and_nested_models(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        root = file.create_group("model_weights")
        root.attrs["layer_names0"], root.attrs["layer_names1"] = ["base"], ["dense_1", "flatten"]
        weights = {"base": ["conv1/kernel:0", "conv2/kernel:0"], "dense_1": ["dense_1_1/kernel_2:0"], "flatten": []}
        for layer, names in weights.items():
            root.create_group(layer).attrs["weight_names"] = np.array(names, "S")
        root["base/conv1/kernel:0"] = np.arange(3, dtype=">f4")
        root["base"].create_dataset("conv2/kernel:0", data=np.ones((9, 9)), compression="gzip")
        root["dense_1/dense_1_1/kernel_2:0"] = np.arange(2, dtype=np.float16)
    values = {"base/conv1/kernel": np.float32([0, 1, 2]), "base/conv2/kernel": np.ones((9, 9))}
    assert_same_tensors(read(tmp_path / "a.h5"), values | {"dense_1/kernel": np.float16([0, 1])})


def test_open_keras_h5_bfloat16(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for key, compression in (("0", None), ("1", "gzip")):
            values = np.array([1, 2], ml_dtypes.bfloat16)
            data = file.create_dataset(f"layers/dense/vars/{key}", data=values, compression=compression)
            data.attrs["dtype"] = "bfloat16"
    got = read(tmp_path / "a.h5")
    assert got["dense/bias"].dtype == ml_dtypes.bfloat16
    assert_same_tensors(got, {"dense/kernel": np.float32([1, 2]), "dense/bias": np.float32([1, 2])})


def test_open_keras_h5_refuses_links_and_bombs(tmp_path):
    h5py = pytest.importorskip("h5py")
    (tmp_path / "secret").write_bytes(b"12345678")
    with h5py.File(tmp_path / "link.h5", "w") as file:
        file["layers/dense/vars/0"] = h5py.ExternalLink(str(GOLDEN / "keras_old.h5"), "/")
    with h5py.File(tmp_path / "outside.h5", "w") as file:
        file.create_dataset("layers/dense/vars/0", (2,), "<f4", external=[(str(tmp_path / "secret"), 0, 8)])
    with h5py.File(tmp_path / "bomb.h5", "w") as file:
        file.create_dataset("layers/dense/vars/0", (10**6, 10**6), "<f4", chunks=(100, 100), compression="gzip")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = 1.0
    for name, words in (
        ("link", "link"),
        ("outside", "another file"),
        ("bomb", "declares"),
        ("other", "no Keras weights"),
    ):
        assert words in error_message(read, tmp_path / f"{name}.h5")


def test_number_from_one():
    names = ["conv2d_95/kernel", "conv2d_94/kernel", "conv2d_94/bias", "conv2d_100/kernel", "predictions/kernel"]
    assert list(number_from_one(names).values()) == [
        *("conv2d_2/kernel", "conv2d_1/kernel", "conv2d_1/bias", "conv2d_3/kernel", "predictions/kernel")
    ]
    assert number_from_one(["batch_normalization", "batch_normalization_1", "conv2_block1_1_conv"]) == {
        "batch_normalization": "batch_normalization_1",
        "batch_normalization_1": "batch_normalization_2",
        "conv2_block1_1_conv": "conv2_block1_1_conv",
    }
    assert number_from_one(["base/dense_4/bias", "dense/bias", "dense/bias"]) == {
        "base/dense_4/bias": "base/dense_1/bias",
        "dense/bias": "dense_1/bias",
    }


# safetensors


arrays = st.sampled_from(DTYPES[:-1]).flatmap(
    lambda dtype: stnp.arrays(dtype, stnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
)


@FEW
@given(st.dictionaries(st.text(max_size=8).filter(lambda n: n != "__metadata__"), arrays, max_size=5))
def test_write_safetensors_equals_library(tmp_path, tensors):
    from safetensors.numpy import save

    try:
        "".join(tensors).encode()
    except UnicodeEncodeError:
        return  # an unpaired surrogate has no UTF-8 form
    path = tmp_path / "a.safetensors"
    write_safetensors(path, tensors, {"written_by": "test"})
    assert path.read_bytes() == save(
        {n: np.ascontiguousarray(t).reshape(t.shape) for n, t in tensors.items()}, {"written_by": "test"}
    )
    got = read(path)
    assert sorted(got) == sorted(tensors)
    for name, value in tensors.items():
        assert got[name].dtype == value.dtype
        np.testing.assert_array_equal(got[name], value)


def test_write_safetensors_lazy_and_strided_tensors(tmp_path):
    values = {"b": np.arange(6).astype(ml_dtypes.bfloat16).reshape(2, 3).T, "big": np.arange(3, dtype=">f8")}
    write_safetensors(tmp_path / "a.safetensors", values)
    with open_tensors(tmp_path / "a.safetensors") as tensors:
        assert tensors["b"].shape == (3, 2)
        write_safetensors(tmp_path / "a.safetensors", tensors, {"source": "itself"})
    got = read(tmp_path / "a.safetensors")
    assert got["b"].dtype == ml_dtypes.bfloat16
    assert_same_tensors(got, {"b": values["b"].astype(np.float32), "big": np.arange(3.0)})


def test_write_safetensors_failure_keeps_old_file(tmp_path):
    path = tmp_path / "a.safetensors"
    write_safetensors(path, {"a": np.ones(2)})
    before = path.read_bytes()

    class Broken:
        shape, dtype = (2,), np.dtype("float32")

        def __array__(self, dtype=None, copy=None):
            raise RuntimeError("gone")

    with pytest.raises(RuntimeError, match="gone"):
        write_safetensors(path, {"a": np.ones(2), "b": Broken()})
    with pytest.raises(UserError, match="complex128"):
        write_safetensors(path, {"a": np.ones(2, complex)})
    assert os.listdir(tmp_path) == [path.name]
    assert path.read_bytes() == before


# any file


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """Return the paths of files of all formats."""
    path = tmp_path_factory.mktemp("samples") / "a.safetensors"
    write_safetensors(path, {"a": np.arange(6.0), "b": np.ones((2, 3), np.float16)})
    return [path, *(GOLDEN / name for name in TORCH + KERAS)]


@FEW
@given(data=st.data())
def test_open_tensors_refuses_truncated_files(samples, tmp_path, data):
    sample = data.draw(st.sampled_from(samples))
    content = sample.read_bytes()
    path = tmp_path / f"cut{''.join(sample.suffixes)}"
    path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    error_message(read, path)
    if ".pth" in path.name:
        error_message(read_without_torch, path)


@pytest.mark.parametrize("reader", [read_without_torch, read_with_torch])
def test_open_torch_refuses_truncated_legacy_file(reader, tmp_path):
    content = (GOLDEN / "torch_legacy.pth").read_bytes()
    for cut in range(1, 40):  # up to the empty storage at the end, whose missing count must not be read as 0
        (tmp_path / "cut.pth").write_bytes(content[:-cut])
        error_message(reader, tmp_path / "cut.pth")


@FEW
@given(data=st.data())
def test_read_without_torch_damaged_pickle(tmp_path, data):
    content = bytearray((GOLDEN / data.draw(st.sampled_from(TORCH))).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, min(len(content), 2500) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "damaged.pth"
    path.write_bytes(content)
    try:
        tensors = read_without_torch(path)
    except UserError:
        return
    assert all(np.asarray(t).nbytes <= len(content) for t in tensors.values())


@pytest.mark.parametrize("name", ["torch_zip.pth", "torch_legacy.pth", "keras_old.h5"])
def test_open_tensors_detects_format_by_first_bytes(name, tmp_path, samples):
    (tmp_path / "weights").write_bytes((GOLDEN / name).read_bytes())
    assert_same_tensors(read(tmp_path / "weights"), read(GOLDEN / name))
    (tmp_path / "other").write_bytes(samples[0].read_bytes())
    assert sorted(read(tmp_path / "other")) == ["a", "b"]


def test_open_tensors_refuses_other_files(tmp_path):
    (tmp_path / "notes.txt").write_text("some words, no weights at all")
    (tmp_path / "model.keras").write_bytes(b"PK")
    (tmp_path / "empty.safetensors").touch()
    assert "There are no weights" in error_message(read, tmp_path / "nowhere.pth")
    assert "is not a safetensors, PyTorch or Keras" in error_message(read, tmp_path / "notes.txt")
    assert "whole Keras model" in error_message(read, tmp_path / "model.keras")
    assert "is empty" in error_message(read, tmp_path / "empty.safetensors")


def test_open_tensors_maps_memory(tmp_path):
    h5py = pytest.importorskip("h5py")
    values = np.ones((1024, 1024), np.float32)
    write_safetensors(tmp_path / "a.safetensors", {"w": values})
    weights = {"w": pickled_tensor((1024, 1024), (1024, 1), count=1024**2)}
    write_zip(tmp_path / "zip.pth", weights, (("data/0", values.tobytes()),))
    write_legacy(tmp_path / "old.pth", weights, (("0", 1024**2, values.tobytes()),))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["layers/dense/vars/0"] = values
    for name in ("a.safetensors", "zip.pth", "old.pth", "a.h5"):
        opener = read_without_torch if name.endswith(".pth") else read
        opener(tmp_path / name)  # so that imports are not measured
        tracemalloc.start()
        (value,) = opener(tmp_path / name).values()
        assert np.asarray(value).sum() == 1024**2
        assert tracemalloc.get_traced_memory()[1] < values.nbytes / 8
        tracemalloc.stop()
