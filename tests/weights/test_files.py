"""Foreign files: the right values under the right names, one at a time, and nothing in a file is executed."""

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
    with np.load(GOLDEN / name) as file:
        return dict(file)


def read(path):
    with open_tensors(path) as tensors:
        return {name: np.asarray(tensor) for name, tensor in tensors.items()}


def with_torch(path):
    pytest.importorskip("torch")
    return open_torch(path)


def refused(opener, path):
    """The one sentence with which a file is refused."""
    with pytest.raises(UserError) as caught:
        opener(path)
    words = str(caught.value)
    assert str(path) in words
    assert words.endswith(".")
    assert "\n" not in words
    return words


def same(got, expected):
    assert sorted(got) == sorted(expected)
    for name, value in expected.items():
        assert got[name].shape == value.shape
        np.testing.assert_array_equal(np.asarray(got[name]).astype(value.dtype), value, err_msg=name)


# torch


@pytest.mark.parametrize("reader", [read_without_torch, with_torch])
@pytest.mark.parametrize("name", TORCH)
def test_torch_files_hold_what_torch_saved(name, reader):
    tensors = reader(GOLDEN / name)
    same(tensors, golden("torch_files.npz"))
    assert tensors["bfloat16"].dtype == ml_dtypes.bfloat16 == np.asarray(tensors["bfloat16"]).dtype
    assert tensors["half"].dtype == np.float16 == np.asarray(tensors["half"]).dtype
    assert "mask_values" not in tensors


@pytest.mark.parametrize("name", ["torch_zip.pth", "torch_legacy.pth"])
def test_names_that_share_a_storage_share_the_mapped_bytes(name):
    tensors = read_without_torch(GOLDEN / name)
    assert np.shares_memory(tensors["tied.a"].read(), tensors["tied.b"].read())
    assert not np.asarray(tensors["view"]).flags.c_contiguous


class Storage:
    """Stands for torch's storage in the pickles that are made here."""

    def __init__(self, kind, key, count, *view):
        self.pid = ("storage", kind, key, "cpu", count, *view)


class Named:
    """Pickles as a global of torch, which need not be there."""

    def __init__(self, name, args=None):
        self.name, self.args = name, args


class Pickler(pickle._Pickler):
    def persistent_id(self, value):
        return value.pid if isinstance(value, Storage) else None

    def save(self, value, save_persistent_id=True):
        if not isinstance(value, Named):
            return super().save(value, save_persistent_id)
        self.write(b"c" + value.name.replace(" ", "\n").encode() + b"\n")
        if value.args is not None:
            super().save(value.args)
            self.write(b"R")


def pickled(value):
    file = io.BytesIO()
    Pickler(file, protocol=2).dump(value)
    return file.getvalue()


def tensor(size, stride, offset=0, kind="FloatStorage", key="0", count=6, view=(), function="_rebuild_tensor_v2"):
    storage = Storage(Named(f"torch {kind}"), key, count, *view)
    return Named(f"torch._utils {function}", (storage, offset, size, stride, False, {}))


SIX = np.arange(6, dtype="<f4").tobytes()


def zipped(path, value, records=(("data/0", SIX),), packing=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", packing) as archive:
        archive.writestr("archive/data.pkl", value if isinstance(value, bytes) else pickled(value))
        for name, content in records:
            archive.writestr(f"archive/{name}", content)
    return path


def legacy(path, value, storages=(("0", 6, SIX),)):
    value = value if isinstance(value, bytes) else pickled(value)
    keys = [key for key, _, _ in storages]
    data = b"".join(count.to_bytes(8, "little") + content for _, count, content in storages)
    path.write_bytes(LEGACY_MAGIC + pickled(1001) + pickled({"little_endian": True}) + value + pickled(keys) + data)
    return path


BOTH = pytest.mark.parametrize("write", [zipped, legacy])


@BOTH
def test_views_start_and_step_where_the_pickle_says(write, tmp_path):
    path = write(tmp_path / "a.pth", {"model": {"w": tensor((2, 2), (1, 2), 1), "n": 3}, "epoch": 1})
    same(read_without_torch(path), {"w": np.float32([[1, 3], [2, 4]])})


def test_views_of_storages_in_the_oldest_files(tmp_path):
    old = tensor((2,), (1,), 1, view=(("key", 2, 4),), function="_rebuild_tensor")
    path = legacy(tmp_path / "a.pth", {"_orig_mod.w": Named("torch._utils _rebuild_parameter", (old, True, {}))})
    same(read_without_torch(path), {"w": np.float32([3, 4])})


def test_big_endian_files_are_swapped(tmp_path):
    wide, short = np.arange(6, dtype=">f4").tobytes(), np.array([0x3F80, 0x4000], ">u2").tobytes()
    value = {"w": tensor((6,), (1,)), "s": tensor((2,), (1,), kind="BFloat16Storage", key="1", count=2)}
    path = zipped(tmp_path / "a.pth", value, (("data/0", wide), ("data/1", short), ("byteorder", b"big")))
    same(read_without_torch(path), {"w": np.arange(6, dtype=np.float32), "s": np.float32([1, 2])})


@BOTH
@pytest.mark.parametrize(
    ("size", "stride", "offset"),
    [((7,), (1,), 0), ((2,), (1,), 5), ((2,), (-1,), 3), ((1,), (1,), -1), ((10**9,), (0,), 0), ((2**63,), (1,), 0)],
)
def test_a_tensor_beyond_its_storage_is_refused(write, size, stride, offset, tmp_path):
    path = write(tmp_path / "a.pth", {"w": tensor(size, stride, offset)})
    assert "a.pth" in refused(read_without_torch, path)


class System:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def attacks(mark):
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


@BOTH
@pytest.mark.parametrize("reader", [read_without_torch, with_torch])
@pytest.mark.parametrize("name", attacks("mark"))
def test_nothing_in_a_pickle_is_executed(name, reader, write, tmp_path):
    mark = tmp_path / "executed"
    path = write(tmp_path / "evil.pth", attacks(mark)[name])
    words = refused(reader, path)
    if reader is read_without_torch:
        assert f"asks for {name}, " in words
        assert "nothing was executed" in words
    assert not mark.exists()


def test_the_attack_would_work_on_plain_pickle(tmp_path):
    pickle.loads(attacks(tmp_path / "executed")["posix.system"])
    assert (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (b"\x80\x02r\xff\xff\xff\x7f.", "a memo index beyond the file"),
        (b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x0f.", "bytes8"),
        ({"epoch": 3}, "has no state dict with tensors"),
        ([1, 2], "has no state dict with tensors"),
        ({"w": tensor((6,), (1,), key="7")}, "archive/data/7"),
    ],
)
def test_bombs_and_checkpoints_without_tensors(value, words, tmp_path):
    assert words in refused(read_without_torch, zipped(tmp_path / "a.pth", value))


@pytest.mark.parametrize("reader", [read_without_torch, with_torch])
def test_zip_files_that_are_no_checkpoints(reader, tmp_path):
    weights = {"w": tensor((6,), (1,))}
    assert "is packed" in refused(reader, zipped(tmp_path / "a.pth", weights, packing=zipfile.ZIP_DEFLATED))
    script = zipped(tmp_path / "b.pt", weights, (("code/__torch__.py", b""),))
    assert "TorchScript program, which is not run" in refused(reader, script)
    with zipfile.ZipFile(tmp_path / "c.pt", "w") as archive:
        archive.writestr("notes.txt", "hello")
    assert "not one of torch.save" in refused(reader, tmp_path / "c.pt")


# Keras


@pytest.mark.parametrize("name", KERAS)
def test_every_keras_layout_gives_the_same_names_and_values(name):
    same(read(GOLDEN / name), golden("keras_files.npz"))


def test_keras3_files_without_layer_names_count_by_class(tmp_path):
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
    same(read(tmp_path / "a.weights.h5"), values)


def test_whole_models_nested_models_and_values_that_hdf5_must_convert(tmp_path):
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
    same(read(tmp_path / "a.h5"), values | {"dense_1/kernel": np.float16([0, 1])})


def test_bfloat16_in_keras3_files(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for key, packed in (("0", None), ("1", "gzip")):
            values = np.array([1, 2], ml_dtypes.bfloat16)
            data = file.create_dataset(f"layers/dense/vars/{key}", data=values, compression=packed)
            data.attrs["dtype"] = "bfloat16"
    got = read(tmp_path / "a.h5")
    assert got["dense/bias"].dtype == ml_dtypes.bfloat16
    same(got, {"dense/kernel": np.float32([1, 2]), "dense/bias": np.float32([1, 2])})


def test_hdf5_files_that_reach_out_or_claim_too_much(tmp_path):
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
        ("bomb", "claims"),
        ("other", "no Keras weights"),
    ):
        assert words in refused(read, tmp_path / f"{name}.h5")


def test_numbering_from_one():
    given = ["conv2d_95/kernel", "conv2d_94/kernel", "conv2d_94/bias", "conv2d_100/kernel", "predictions/kernel"]
    assert list(number_from_one(given).values()) == [
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
def test_what_was_written_is_read_and_is_what_the_library_writes(tmp_path, tensors):
    from safetensors.numpy import save

    try:
        "".join(tensors).encode()
    except UnicodeEncodeError:
        return  # half a surrogate pair is no text
    path = tmp_path / "a.safetensors"
    write_safetensors(path, tensors, {"made": "here"})
    assert path.read_bytes() == save(
        {n: np.ascontiguousarray(t).reshape(t.shape) for n, t in tensors.items()}, {"made": "here"}
    )
    got = read(path)
    assert sorted(got) == sorted(tensors)
    for name, value in tensors.items():
        assert got[name].dtype == value.dtype
        np.testing.assert_array_equal(got[name], value)


def test_lazy_foreign_and_strided_tensors_are_written(tmp_path):
    values = {"b": np.arange(6).astype(ml_dtypes.bfloat16).reshape(2, 3).T, "big": np.arange(3, dtype=">f8")}
    write_safetensors(tmp_path / "a.safetensors", values)
    with open_tensors(tmp_path / "a.safetensors") as tensors:
        assert tensors["b"].shape == (3, 2)
        write_safetensors(tmp_path / "a.safetensors", tensors, {"over": "itself"})
    got = read(tmp_path / "a.safetensors")
    assert got["b"].dtype == ml_dtypes.bfloat16
    same(got, {"b": values["b"].astype(np.float32), "big": np.arange(3.0)})


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
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
    path = tmp_path_factory.mktemp("samples") / "a.safetensors"
    write_safetensors(path, {"a": np.arange(6.0), "b": np.ones((2, 3), np.float16)})
    return [path, *(GOLDEN / name for name in TORCH + KERAS)]


@FEW
@given(data=st.data())
def test_a_file_cut_off_anywhere_is_refused(samples, tmp_path, data):
    whole = data.draw(st.sampled_from(samples))
    content = whole.read_bytes()
    path = tmp_path / f"cut{''.join(whole.suffixes)}"
    path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    refused(read, path)
    if ".pth" in path.name:
        refused(read_without_torch, path)


@pytest.mark.parametrize("reader", [read_without_torch, with_torch])
def test_a_legacy_file_without_its_last_bytes_is_refused(reader, tmp_path):
    content = (GOLDEN / "torch_legacy.pth").read_bytes()
    for cut in range(1, 40):  # through the empty storage at its end, whose count of 0 a careless reader makes up
        (tmp_path / "cut.pth").write_bytes(content[:-cut])
        refused(reader, tmp_path / "cut.pth")


@FEW
@given(data=st.data())
def test_a_damaged_pickle_is_refused_or_gives_arrays(tmp_path, data):
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
def test_without_a_known_suffix_the_first_bytes_decide(name, tmp_path, samples):
    (tmp_path / "weights").write_bytes((GOLDEN / name).read_bytes())
    same(read(tmp_path / "weights"), read(GOLDEN / name))
    (tmp_path / "other").write_bytes(samples[0].read_bytes())
    assert sorted(read(tmp_path / "other")) == ["a", "b"]


def test_what_is_no_file_of_weights(tmp_path):
    (tmp_path / "notes.txt").write_text("some words, no weights at all")
    (tmp_path / "model.keras").write_bytes(b"PK")
    (tmp_path / "empty.safetensors").touch()
    assert "There are no weights" in refused(read, tmp_path / "nowhere.pth")
    assert "is no safetensors, torch or Keras" in refused(read, tmp_path / "notes.txt")
    assert "whole Keras model" in refused(read, tmp_path / "model.keras")
    assert "is empty" in refused(read, tmp_path / "empty.safetensors")


def test_reading_takes_no_memory_of_its_own(tmp_path):
    h5py = pytest.importorskip("h5py")
    values, size = np.ones((1024, 1024), np.float32), 4 << 20
    write_safetensors(tmp_path / "a.safetensors", {"w": values})
    weights = {"w": tensor((1024, 1024), (1024, 1), count=1024**2)}
    zipped(tmp_path / "zip.pth", weights, (("data/0", values.tobytes()),))
    legacy(tmp_path / "old.pth", weights, (("0", 1024**2, values.tobytes()),))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["layers/dense/vars/0"] = values
    for name in ("a.safetensors", "zip.pth", "old.pth", "a.h5"):
        opener = read_without_torch if name.endswith(".pth") else read
        opener(tmp_path / name)  # imports what it needs
        tracemalloc.start()
        (value,) = opener(tmp_path / name).values()
        assert np.asarray(value).sum() == 1024**2
        assert tracemalloc.get_traced_memory()[1] < size / 8
        tracemalloc.stop()
