"""Downloads with the real clients from a local server that fails in the ways a real one may."""

import dataclasses
import hashlib
import os
import re
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from rich.console import Console

from tests.weights.local_server import BAD, COMMIT, GOOD, MD5, NAME, REPO, SHA256, File
from tljax.errors import UserError
from tljax.weights.download import from_url
from tljax.weights.hub import from_hub


@pytest.fixture
def closed_url(site):
    """The address of a closed port."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    server.server_close()
    return f"http://127.0.0.1:{server.server_port}"


@pytest.fixture
def download(site, tmp_path):
    """Download `/f.pth` to `tmp_path` by its URL."""

    def download(**options):
        options = {"sha256": SHA256, "directory": tmp_path, "wait": 0.0} | options
        return from_url(options.pop("url", f"{site.url}/f.pth"), **options)

    site.files["/f.pth"] = File()
    return download


@pytest.fixture
def hub(site, tmp_path):
    """Download from the site's Hub to an empty cache."""

    def hub(repo=REPO, filename=None, revision=None, **options):
        return from_hub(repo, filename, revision, **{"endpoint": site.url, "cache_dir": tmp_path} | options)

    site.repo[NAME] = site.files[f"/cdn/{NAME}"] = File()
    return hub


def visible_files(folder):
    """Return the names of the files in a folder that are not hidden."""
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def assert_fails(call, *words, **options):
    """Assert that the call raises a one-line error that contains the words."""
    with pytest.raises(UserError) as caught:
        call(**options)
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith((".", "?"))
    assert not re.search(r"\. [A-Z]", message), message
    for word in words:
        assert word in message


def wait_for(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# --- from_url ---


@pytest.mark.parametrize(
    "digest", [{"sha256": SHA256.upper()}, {"prefix": SHA256[:8]}, {"md5": MD5}, {"sha256": SHA256, "md5": MD5}]
)
def test_from_url_downloads_once(download, site, tmp_path, console, digest):
    assert download(**{"sha256": None, **digest}, console=console).read_bytes() == GOOD
    assert download(**{"sha256": None, **digest}) == tmp_path / "f.pth"
    assert site.ranges == [None]
    assert visible_files(tmp_path) == ["f.pth"]
    assert console.export_text() == ""


def test_from_url_requires_digest(download):
    with pytest.raises(ValueError, match="digest"):
        download(sha256=None)


def test_from_url_shows_progress_bar(download, tmp_path):
    console = Console(force_terminal=True, file=(tmp_path / "screen").open("w+"), width=100)
    download(console=console)
    console.file.seek(0)
    assert "f.pth" in console.file.read()


def test_from_url_default_directory(download, tmp_path, monkeypatch):
    monkeypatch.setenv("TLJAX_CACHE", str(tmp_path / "a" / "b"))
    assert download(directory=None, filename="g.pth") == tmp_path / "a" / "b" / "weights" / "g.pth"
    monkeypatch.delenv("TLJAX_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert download(directory=None) == tmp_path / ".cache" / "tljax" / "weights" / "f.pth"


def test_from_url_resumes_within_one_call(download, site):
    site.files["/f.pth"].cuts = [100_000, 200_000]
    assert download().read_bytes() == GOOD
    assert site.ranges == [None, "bytes=100000-", "bytes=200000-"]
    assert site.requests[1][2]["If-Range"] == '"1"'
    assert site.bytes_sent == len(GOOD)


def test_from_url_resumes_in_next_call(download, site, tmp_path):
    site.files["/f.pth"].cuts = [100_000]
    assert_fails(download, "/f.pth cannot be downloaded", retries=0)
    assert visible_files(tmp_path) == ["f.pth.part", "f.pth.part.etag"]
    assert download().read_bytes() == GOOD
    assert site.ranges == [None, "bytes=100000-"]
    assert site.bytes_sent < 2 * len(GOOD)
    assert visible_files(tmp_path) == ["f.pth"]


@pytest.mark.parametrize("etag", ['W/"1"', ""])
def test_from_url_restarts_without_strong_etag(download, site, etag):
    site.files["/f.pth"] = File(etag=etag, cuts=[100_000])
    assert download().read_bytes() == GOOD
    assert site.ranges == [None, None]


def test_from_url_restarts_without_range_support(download, site):
    site.files["/f.pth"] = File(supports_ranges=False, cuts=[100_000])
    assert download().read_bytes() == GOOD
    assert site.ranges == [None, "bytes=100000-"]


def test_from_url_restarts_if_etag_changed(download, site):
    site.files["/f.pth"] = File(BAD, cuts=[100_000])
    assert_fails(download, retries=0)
    site.files["/f.pth"] = File(etag='"2"', cuts=[200_000])
    assert download().read_bytes() == GOOD
    assert site.ranges == [None, "bytes=100000-", "bytes=200000-"]
    assert site.requests[-1][2]["If-Range"] == '"2"'


def test_from_url_refuses_range_of_another_file(download, site):
    site.files["/f.pth"] = File(BAD, cuts=[100_000])
    assert_fails(download, retries=0)
    site.files["/f.pth"] = File(etag='"2"', supports_if_range=False)
    assert download().read_bytes() == GOOD
    assert site.ranges == [None, "bytes=100000-", None]


def test_from_url_restarts_if_part_is_too_long(download, site, tmp_path):
    (tmp_path / "f.pth.part").write_bytes(GOOD + b"more")
    (tmp_path / "f.pth.part.etag").write_text('"1"')
    assert download().read_bytes() == GOOD
    assert site.ranges == ["bytes=300004-", None]


def test_from_url_fails_after_all_retries(download, site):
    site.files["/f.pth"].cuts = [100_000] * 4
    assert_fails(download, "cannot be downloaded")
    assert len(site.ranges) == 4
    assert download().read_bytes() == GOOD


@pytest.mark.parametrize(
    ("content", "digest", "words"),
    [
        (BAD, {}, ("SHA-256 is " + hashlib.sha256(BAD).hexdigest(), f"expected {SHA256}")),
        (GOOD[:-1], {}, ("SHA-256 is ", f"expected {SHA256}")),
        (BAD, {"sha256": None, "prefix": SHA256[:8]}, (f"expected {SHA256[:8]}...",)),
        (BAD, {"sha256": None, "md5": MD5}, ("MD5 is ", f"expected {MD5}")),
    ],
)
def test_from_url_wrong_digest_leaves_no_file(download, site, tmp_path, content, digest, words):
    site.files["/f.pth"] = File(content)
    assert_fails(download, "/f.pth", *words, **digest)
    assert visible_files(tmp_path) == []
    site.files["/f.pth"] = File()
    assert download(**digest).read_bytes() == GOOD


def test_from_url_replaces_damaged_file(download, site, tmp_path):
    (tmp_path / "f.pth").write_bytes(BAD)
    site.files["/f.pth"].statuses = [404]
    assert_fails(download)
    assert (tmp_path / "f.pth").read_bytes() == BAD
    assert download().read_bytes() == GOOD


def test_from_url_retries_temporary_statuses_only(download, site):
    site.files["/f.pth"].statuses = [503, 429]
    assert download(filename="g.pth").read_bytes() == GOOD
    site.files["/f.pth"].statuses = [404]
    before = len(site.requests)
    assert_fails(download, "/f.pth cannot be downloaded: the server returned HTTP 404")
    assert len(site.requests) == before + 1
    assert download().read_bytes() == GOOD


def test_from_url_without_network(download, closed_url, tmp_path):
    assert_fails(download, "/f.pth cannot be downloaded", "refused", url=f"{closed_url}/f.pth", retries=1)
    assert visible_files(tmp_path) == []
    download()
    assert download(url=f"{closed_url}/f.pth").read_bytes() == GOOD


def test_from_url_unwritable_directory(download, tmp_path):
    (tmp_path / "file").touch()
    assert_fails(download, "file/f.pth cannot be written", directory=tmp_path / "file")


def test_from_url_concurrent_calls_download_once(download, site, tmp_path, console):
    file = site.files["/f.pth"] = File(pause=threading.Event())
    paths = []
    first = threading.Thread(target=lambda: paths.append(download()))
    first.start()
    wait_for(lambda: site.requests)
    second = threading.Thread(target=lambda: paths.append(download(console=console)))
    second.start()
    wait_for(lambda: console.export_text(clear=False))
    file.pause.set()
    first.join()
    second.join()
    assert paths == [tmp_path / "f.pth"] * 2
    assert paths[0].read_bytes() == GOOD
    assert "Waiting for another process that downloads f.pth." in console.export_text()
    assert site.ranges == [None]


# --- from_hub ---


def test_from_hub_returns_digest_and_commit(hub, site, tmp_path, console):
    site.repo["pytorch_model.bin"] = File()
    file = hub(console=console)
    assert file.path.read_bytes() == GOOD
    assert (file.path.name, file.sha256, file.revision) == (NAME, SHA256, COMMIT)
    assert file.path.is_relative_to(tmp_path)
    assert hub() == hub(filename=NAME) == file
    assert site.ranges == [None]
    assert console.export_text() == ""


def test_from_hub_other_filenames(hub, site):
    site.repo.clear()
    for name in ("pytorch_model.bin", "a/b/net.safetensors"):
        site.repo[name] = site.files[f"/cdn/{name}"] = File()
    assert hub().path.name == "pytorch_model.bin"
    file = hub(filename="a/b/net.safetensors")
    assert file.path.parts[-4:] == (COMMIT, "a", "b", "net.safetensors")
    assert file.revision == COMMIT


def test_from_hub_cached_commit_needs_no_network(hub, site, closed_url):
    file = hub(revision=COMMIT)
    before = len(site.requests)
    assert hub(revision=COMMIT) == hub(revision=COMMIT, endpoint=closed_url) == file
    assert len(site.requests) == before


def test_from_hub_prefers_first_filename_over_cached(hub, site):
    site.repo["pytorch_model.bin"] = site.files["/cdn/pytorch_model.bin"] = File()
    assert hub(revision=COMMIT, filename="pytorch_model.bin").path.name == "pytorch_model.bin"
    assert hub(revision=COMMIT).path.name == NAME


def test_from_hub_uses_cache_without_network(hub, site, closed_url, console, monkeypatch):
    file = hub()
    assert hub(endpoint=closed_url, console=console) == file
    assert f"Using lab/net/model.safetensors from the cache: {closed_url} cannot be reached" in console.export_text()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    before = len(site.requests)
    assert hub(console=console) == file
    assert "from the cache: HF_HUB_OFFLINE is set." in console.export_text()
    assert_fails(hub, "lab/net is not in the cache with other.bin, and HF_HUB_OFFLINE is set.", filename="other.bin")
    assert len(site.requests) == before


def test_from_hub_reads_environment(hub, closed_url, tmp_path):
    file = hub()
    run = subprocess.run(
        [sys.executable, "-c", "from tljax.weights.hub import from_hub; print(from_hub('lab/net').path)"],
        env=os.environ | {"HF_HUB_CACHE": str(tmp_path), "HF_ENDPOINT": closed_url, "COLUMNS": "200"},
        capture_output=True,
        text=True,
    )
    message, path = run.stdout.splitlines()
    assert path == str(file.path)
    assert f"{closed_url} cannot be reached" in message


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"repo": "lab/nothing"}, ["There is no lab/nothing at http://127.0.0.1"]),
        ({"repo": "a/b/c"}, ["a/b/c cannot be downloaded: Repo id must"]),
        ({"revision": "v9"}, ['lab/net has no revision "v9".']),
        ({"filename": "modell.safetensors"}, ['lab/net has no modell.safetensors; did you mean "model.safetensors"?']),
        ({"filename": "x.bin"}, ["lab/net has no x.bin; available: model.safetensors."]),
        ({"filename": "../x.bin", "revision": COMMIT}, ["lab/net cannot be downloaded: "]),
    ],
)
def test_from_hub_missing_repo_revision_or_file(hub, options, words):
    assert_fails(hub, *words, **options)
    assert hub().sha256 == SHA256


def test_from_hub_without_default_filenames(hub, site):
    site.repo = {"net.pth": File(), "README.md": File()}
    assert_fails(hub, "lab/net has no model.safetensors and no pytorch_model.bin; available: net.pth.")


@pytest.mark.parametrize(
    ("hub_error", "words"),
    [
        ((401, {"X-Error-Code": "GatedRepo"}, b""), ["lab/net is gated: accept its terms at http://", "HF_TOKEN"]),
        ((401, {"X-Error-Message": "Invalid credentials in Authorization header"}, b""), ["returned HTTP 401"]),
        ((404, {"X-Error-Code": "EntryNotFound"}, b""), ["lab/net cannot be downloaded", "returned HTTP 404"]),
    ],
)
def test_from_hub_refused(hub, site, hub_error, words):
    site.hub_error = hub_error
    assert_fails(hub, *words)
    site.hub_error = None
    assert hub().sha256 == SHA256


def test_from_hub_without_cache_and_network(hub, closed_url):
    words = "lab/net is not in the cache with model.safetensors or pytorch_model.bin", closed_url
    assert_fails(hub, *words, endpoint=closed_url)
    assert hub().sha256 == SHA256


def test_from_hub_resumes(hub, site):
    site.files[f"/cdn/{NAME}"].cuts = [100_000]
    assert hub().sha256 == SHA256
    assert site.ranges == [None, "bytes=100000-"]
    assert site.bytes_sent == len(GOOD)


@pytest.mark.parametrize(
    ("file", "words"),
    [
        (File(cuts=[100_000] * 10), ["lab/net cannot be downloaded"]),
        (File(GOOD[:-1]), ["lab/net cannot be downloaded: Consistency check failed", "300000", "299999"]),
        (File(BAD), ["lab/net/model.safetensors is damaged", hashlib.sha256(BAD).hexdigest(), f"expected {SHA256}"]),
        (File(statuses=[500]), ["lab/net cannot be downloaded"]),
    ],
)
def test_from_hub_bad_download_is_not_cached(hub, site, closed_url, tmp_path, file, words):
    site.files[f"/cdn/{NAME}"] = dataclasses.replace(file, cuts=list(file.cuts), statuses=list(file.statuses))
    assert_fails(hub, *words)
    assert_fails(hub, "not in the cache", endpoint=closed_url)
    assert not [path for path in tmp_path.rglob("blobs/*") if path.name != ".gitignore"]
    site.files[f"/cdn/{NAME}"] = File()
    assert hub().path.read_bytes() == GOOD


def test_from_hub_xet_error_and_fallback(hub, site, monkeypatch):
    pytest.importorskip("hf_xet")
    site.hub_headers = {"X-Xet-Hash": "a" * 64, "X-Xet-Refresh-Route": f"{site.url}/xet"}
    assert_fails(hub, "lab/net cannot be downloaded", "returned HTTP 404")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    assert hub().sha256 == SHA256


def test_from_hub_replaces_damaged_blob(hub, closed_url):
    file = hub()
    file.path.resolve().write_bytes(BAD)
    assert_fails(hub, "is damaged and was removed", endpoint=closed_url)
    assert hub() == file
    assert file.path.read_bytes() == GOOD
