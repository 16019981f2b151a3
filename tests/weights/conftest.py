"""The local server that several tests download from."""

import threading
import types
from http.server import ThreadingHTTPServer

import huggingface_hub
import pytest

from tests.weights.local_server import Site, handler


@pytest.fixture
def site(monkeypatch):
    """A `Site` served at `site.url`, and on a second port at `site.cdn`."""
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "*")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    huggingface_hub.close_session()  # the client reads the proxy settings when it is created
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 50_000)  # resumes at a multiple of this
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
