"""The server that several tests download from."""

import threading
import types
from http.server import ThreadingHTTPServer

import huggingface_hub
import pytest

from tests.weights.loopback import Site, handler


@pytest.fixture
def site(monkeypatch):
    """A site that is served at `site.url`, and over a second port at `site.cdn`."""
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "*")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    huggingface_hub.close_session()  # a client reads the proxies when it is made
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 50_000)  # it resumes at a multiple of this
    monkeypatch.setattr("huggingface_hub.file_download.time", types.SimpleNamespace(sleep=lambda seconds: None))
    site = Site()
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), handler(site, lambda: site.cdn)) for _ in range(2)]
    site.url, site.cdn = (f"http://127.0.0.1:{server.server_port}" for server in servers)
    for server in servers:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield site
    for server in servers:
        server.shutdown()
        server.server_close()
