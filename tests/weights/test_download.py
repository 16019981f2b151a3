"""Downloads, by the real clients, from a server on loopback that misbehaves in every way that a real one may."""

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

from tests.weights.loopback import BAD, COMMIT, GOOD, MD5, NAME, REPO, SHA256, File
from tljax.errors import UserError
from tljax.weights.download import from_url
from tljax.weights.hub import from_hub


@pytest.fixture
def closed(site):
    """An address where nobody listens."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    server.server_close()
    return f"http://127.0.0.1:{server.server_port}"


@pytest.fixture
def get(site, tmp_path):
    """Downloads `/f.pth` into `tmp_path` by its URL."""

    def get(**options):
        options = {"sha256": SHA256, "directory": tmp_path, "wait": 0.0} | options
        return from_url(options.pop("url", f"{site.url}/f.pth"), **options)

    site.files["/f.pth"] = File()
    return get


@pytest.fixture
def hub(site, tmp_path):
    """Downloads from the site's Hub into a cache of its own."""

    def hub(repo=REPO, filename=None, revision=None, **options):
        return from_hub(repo, filename, revision, **{"endpoint": site.url, "cache_dir": tmp_path} | options)

    site.repo[NAME] = site.files[f"/cdn/{NAME}"] = File()
    return hub


def visible(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def fails(call, *words, **options):
    """Asserts that the call ends with one sentence that has the words."""
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
def test_a_file_is_downloaded_once(get, site, tmp_path, console, digest):
    assert get(**{"sha256": None, **digest}, console=console).read_bytes() == GOOD
    assert get(**{"sha256": None, **digest}) == tmp_path / "f.pth"
    assert site.ranges == [None]
    assert visible(tmp_path) == ["f.pth"]
    assert console.export_text() == ""


def test_a_digest_is_needed(get):
    with pytest.raises(ValueError, match="digest"):
        get(sha256=None)


def test_a_terminal_gets_a_bar(get, tmp_path):
    console = Console(force_terminal=True, file=(tmp_path / "screen").open("w+"), width=100)
    get(console=console)
    console.file.seek(0)
    assert "f.pth" in console.file.read()


def test_the_default_directory(get, tmp_path, monkeypatch):
    monkeypatch.setenv("TLJAX_CACHE", str(tmp_path / "a" / "b"))
    assert get(directory=None, filename="g.pth") == tmp_path / "a" / "b" / "weights" / "g.pth"
    monkeypatch.delenv("TLJAX_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert get(directory=None) == tmp_path / ".cache" / "tljax" / "weights" / "f.pth"


def test_a_cut_is_resumed_within_one_call(get, site):
    site.files["/f.pth"].cuts = [100_000, 200_000]
    assert get().read_bytes() == GOOD
    assert site.ranges == [None, "bytes=100000-", "bytes=200000-"]
    assert site.asked[1][2]["If-Range"] == '"1"'
    assert site.sent == len(GOOD)


def test_a_cut_is_resumed_by_the_next_call(get, site, tmp_path):
    site.files["/f.pth"].cuts = [100_000]
    fails(get, "/f.pth cannot be downloaded", retries=0)
    assert visible(tmp_path) == ["f.pth.part", "f.pth.part.etag"]
    assert get().read_bytes() == GOOD
    assert site.ranges == [None, "bytes=100000-"]
    assert site.sent < 2 * len(GOOD)
    assert visible(tmp_path) == ["f.pth"]


@pytest.mark.parametrize("etag", ['W/"1"', ""])
def test_without_a_strong_etag_it_starts_again(get, site, etag):
    site.files["/f.pth"] = File(etag=etag, cuts=[100_000])
    assert get().read_bytes() == GOOD
    assert site.ranges == [None, None]


def test_a_server_without_ranges_starts_again(get, site):
    site.files["/f.pth"] = File(ranges=False, cuts=[100_000])
    assert get().read_bytes() == GOOD
    assert site.ranges == [None, "bytes=100000-"]


def test_another_etag_starts_again(get, site):
    site.files["/f.pth"] = File(BAD, cuts=[100_000])
    fails(get, retries=0)
    site.files["/f.pth"] = File(etag='"2"', cuts=[200_000])
    assert get().read_bytes() == GOOD
    assert site.ranges == [None, "bytes=100000-", "bytes=200000-"]
    assert site.asked[-1][2]["If-Range"] == '"2"'


def test_the_rest_of_another_file_is_not_taken(get, site):
    site.files["/f.pth"] = File(BAD, cuts=[100_000])
    fails(get, retries=0)
    site.files["/f.pth"] = File(etag='"2"', heeds_if_range=False)
    assert get().read_bytes() == GOOD
    assert site.ranges == [None, "bytes=100000-", None]


def test_a_part_that_is_too_long_starts_again(get, site, tmp_path):
    (tmp_path / "f.pth.part").write_bytes(GOOD + b"more")
    (tmp_path / "f.pth.part.etag").write_text('"1"')
    assert get().read_bytes() == GOOD
    assert site.ranges == ["bytes=300004-", None]


def test_always_cut(get, site):
    site.files["/f.pth"].cuts = [100_000] * 4
    fails(get, "cannot be downloaded")
    assert len(site.ranges) == 4
    assert get().read_bytes() == GOOD


@pytest.mark.parametrize(
    ("content", "digest", "words"),
    [
        (BAD, {}, ("SHA-256 is " + hashlib.sha256(BAD).hexdigest(), f"expected {SHA256}")),
        (GOOD[:-1], {}, ("SHA-256 is ", f"expected {SHA256}")),
        (BAD, {"sha256": None, "prefix": SHA256[:8]}, (f"expected {SHA256[:8]}...",)),
        (BAD, {"sha256": None, "md5": MD5}, ("MD5 is ", f"expected {MD5}")),
    ],
)
def test_a_wrong_digest_leaves_nothing(get, site, tmp_path, content, digest, words):
    site.files["/f.pth"] = File(content)
    fails(get, "/f.pth", *words, **digest)
    assert visible(tmp_path) == []
    site.files["/f.pth"] = File()
    assert get(**digest).read_bytes() == GOOD


def test_a_damaged_file_is_replaced(get, site, tmp_path):
    (tmp_path / "f.pth").write_bytes(BAD)
    site.files["/f.pth"].answers = [404]
    fails(get)
    assert (tmp_path / "f.pth").read_bytes() == BAD
    assert get().read_bytes() == GOOD


def test_answers_that_pass_and_answers_that_stay(get, site):
    site.files["/f.pth"].answers = [503, 429]
    assert get(filename="g.pth").read_bytes() == GOOD
    site.files["/f.pth"].answers = [404]
    before = len(site.asked)
    fails(get, "/f.pth cannot be downloaded: the server answers 404")
    assert len(site.asked) == before + 1
    assert get().read_bytes() == GOOD


def test_no_network(get, closed, tmp_path):
    fails(get, "/f.pth cannot be downloaded", "refused", url=f"{closed}/f.pth", retries=1)
    assert visible(tmp_path) == []
    get()
    assert get(url=f"{closed}/f.pth").read_bytes() == GOOD


def test_no_place_to_write(get, tmp_path):
    (tmp_path / "file").touch()
    fails(get, "file/f.pth cannot be written", directory=tmp_path / "file")


def test_two_at_once_download_once(get, site, tmp_path, console):
    file = site.files["/f.pth"] = File(hold=threading.Event())
    paths = []
    first = threading.Thread(target=lambda: paths.append(get()))
    first.start()
    wait_for(lambda: site.asked)
    second = threading.Thread(target=lambda: paths.append(get(console=console)))
    second.start()
    wait_for(lambda: console.export_text(clear=False))
    file.hold.set()
    first.join()
    second.join()
    assert paths == [tmp_path / "f.pth"] * 2
    assert paths[0].read_bytes() == GOOD
    assert "Waiting for another process that downloads f.pth." in console.export_text()
    assert site.ranges == [None]


# --- from_hub ---


def test_the_hub_gives_a_file_with_digest_and_commit(hub, site, tmp_path, console):
    site.repo["pytorch_model.bin"] = File()
    fetched = hub(console=console)
    assert fetched.path.read_bytes() == GOOD
    assert (fetched.path.name, fetched.sha256, fetched.revision) == (NAME, SHA256, COMMIT)
    assert fetched.path.is_relative_to(tmp_path)
    assert hub() == hub(filename=NAME) == fetched
    assert site.ranges == [None]
    assert console.export_text() == ""


def test_the_other_name_and_folders(hub, site):
    site.repo.clear()
    for name in ("pytorch_model.bin", "a/b/net.safetensors"):
        site.repo[name] = site.files[f"/cdn/{name}"] = File()
    assert hub().path.name == "pytorch_model.bin"
    fetched = hub(filename="a/b/net.safetensors")
    assert fetched.path.parts[-4:] == (COMMIT, "a", "b", "net.safetensors")
    assert fetched.revision == COMMIT


def test_a_commit_in_the_cache_needs_no_network(hub, site, closed):
    fetched = hub(revision=COMMIT)
    before = len(site.asked)
    assert hub(revision=COMMIT) == hub(revision=COMMIT, endpoint=closed) == fetched
    assert len(site.asked) == before


def test_the_second_name_in_the_cache_does_not_hide_the_first(hub, site):
    site.repo["pytorch_model.bin"] = site.files["/cdn/pytorch_model.bin"] = File()
    assert hub(revision=COMMIT, filename="pytorch_model.bin").path.name == "pytorch_model.bin"
    assert hub(revision=COMMIT).path.name == NAME


def test_the_cache_stands_in_when_the_hub_is_away(hub, site, closed, console, monkeypatch):
    fetched = hub()
    assert hub(endpoint=closed, console=console) == fetched
    assert f"lab/net/model.safetensors comes from the cache: {closed} cannot be reached" in console.export_text()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    before = len(site.asked)
    assert hub(console=console) == fetched
    assert "comes from the cache: HF_HUB_OFFLINE is set." in console.export_text()
    fails(hub, "lab/net is not in the cache with other.bin, and HF_HUB_OFFLINE is set.", filename="other.bin")
    assert len(site.asked) == before


def test_the_environment_decides(hub, closed, tmp_path):
    fetched = hub()
    run = subprocess.run(
        [sys.executable, "-c", "from tljax.weights.hub import from_hub; print(from_hub('lab/net').path)"],
        env=os.environ | {"HF_HUB_CACHE": str(tmp_path), "HF_ENDPOINT": closed, "COLUMNS": "200"},
        capture_output=True,
        text=True,
    )
    said, path = run.stdout.splitlines()
    assert path == str(fetched.path)
    assert f"{closed} cannot be reached" in said


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"repo": "lab/nothing"}, ["There is no lab/nothing at http://127.0.0.1"]),
        ({"repo": "a/b/c"}, ["a/b/c cannot be downloaded: Repo id must"]),
        ({"revision": "v9"}, ['lab/net has no revision "v9".']),
        ({"filename": "modell.safetensors"}, ['lab/net has no modell.safetensors; did you mean "model.safetensors"?']),
        ({"filename": "x.bin"}, ["lab/net has no x.bin; there is: model.safetensors."]),
        ({"filename": "../x.bin", "revision": COMMIT}, ["lab/net cannot be downloaded: "]),
    ],
)
def test_what_the_hub_does_not_have(hub, options, words):
    fails(hub, *words, **options)
    assert hub().sha256 == SHA256


def test_neither_of_the_usual_names(hub, site):
    site.repo = {"net.pth": File(), "README.md": File()}
    fails(hub, "lab/net has no model.safetensors and no pytorch_model.bin; there is: net.pth.")


@pytest.mark.parametrize(
    ("refused", "words"),
    [
        ((401, {"X-Error-Code": "GatedRepo"}, b""), ["lab/net is gated: accept its terms at http://", "HF_TOKEN"]),
        ((401, {"X-Error-Message": "Invalid credentials in Authorization header"}, b""), ["answers 401"]),
        ((404, {"X-Error-Code": "EntryNotFound"}, b""), ["lab/net cannot be downloaded", "answers 404"]),
    ],
)
def test_a_hub_that_refuses(hub, site, refused, words):
    site.refused = refused
    fails(hub, *words)
    site.refused = None
    assert hub().sha256 == SHA256


def test_no_hub(hub, closed):
    fails(hub, "lab/net is not in the cache with model.safetensors or pytorch_model.bin", closed, endpoint=closed)
    assert hub().sha256 == SHA256


def test_a_cut_from_the_hub_is_resumed(hub, site):
    site.files[f"/cdn/{NAME}"].cuts = [100_000]
    assert hub().sha256 == SHA256
    assert site.ranges == [None, "bytes=100000-"]
    assert site.sent == len(GOOD)


@pytest.mark.parametrize(
    ("file", "words"),
    [
        (File(cuts=[100_000] * 10), ["lab/net cannot be downloaded"]),
        (File(GOOD[:-1]), ["lab/net cannot be downloaded: Consistency check failed", "300000", "299999"]),
        (File(BAD), ["lab/net/model.safetensors is damaged", hashlib.sha256(BAD).hexdigest(), f"expected {SHA256}"]),
        (File(answers=[500]), ["lab/net cannot be downloaded"]),
    ],
)
def test_a_bad_download_does_not_stay_in_the_cache(hub, site, closed, tmp_path, file, words):
    site.files[f"/cdn/{NAME}"] = dataclasses.replace(file, cuts=list(file.cuts), answers=list(file.answers))
    fails(hub, *words)
    fails(hub, "not in the cache", endpoint=closed)
    assert not [path for path in tmp_path.rglob("blobs/*") if path.name != ".gitignore"]
    site.files[f"/cdn/{NAME}"] = File()
    assert hub().path.read_bytes() == GOOD


def test_xet_fails_with_a_sentence_and_can_be_left_out(hub, site, monkeypatch):
    pytest.importorskip("hf_xet")
    site.linked = {"X-Xet-Hash": "a" * 64, "X-Xet-Refresh-Route": f"{site.url}/xet"}
    fails(hub, "lab/net cannot be downloaded", "answers 404")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    assert hub().sha256 == SHA256


def test_a_blob_that_rotted_is_found_offline_and_replaced(hub, closed):
    fetched = hub()
    fetched.path.resolve().write_bytes(BAD)
    fails(hub, "is damaged and was removed", endpoint=closed)
    assert hub() == fetched
    assert fetched.path.read_bytes() == GOOD
