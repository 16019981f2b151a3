"""A local HTTP server: files with ETags and ranges, dropped connections, and the API that the Hub's client uses."""

import dataclasses
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler

import numpy as np

GOOD = np.random.default_rng(0).bytes(300_000)
BAD = bytes(len(GOOD))
SHA256 = hashlib.sha256(GOOD).hexdigest()
MD5 = hashlib.md5(GOOD).hexdigest()
COMMIT = "c0ffee" + "0" * 34
REPO, NAME = "lab/net", "model.safetensors"


@dataclasses.dataclass
class File:
    """A file of the server, and how it is served.

    Attributes:
      content: the bytes.
      etag: value of the ETag header.
      supports_ranges: whether Range headers are honored.
      supports_if_range: whether If-Range headers are honored.
      cuts: for each GET in turn, the byte of the file at which the connection is dropped.
      statuses: for each GET in turn, the HTTP status to send instead of the content.
      pause: event to wait for in the middle of the content.
    """

    content: bytes = GOOD
    etag: str = '"1"'
    supports_ranges: bool = True
    supports_if_range: bool = True
    cuts: list[int] = dataclasses.field(default_factory=list)
    statuses: list[int] = dataclasses.field(default_factory=list)
    pause: threading.Event | None = None


class Site:
    """State of the server.

    Attributes:
      files: {path: File}.
      repo: {name: File} of the Hub's repository `REPO`.
      hub_error: (status, headers, content) that the Hub sends instead of a file.
      hub_headers: additional headers of the Hub for a file.
      requests: (method, path, headers) of each request.
      bytes_sent: number of bytes of content sent.
    """

    def __init__(self):
        self.files = {}
        self.repo = {}
        self.hub_error = None
        self.hub_headers = {}
        self.requests = []
        self.bytes_sent = 0

    @property
    def ranges(self):
        """The Range header of each request for a file's content."""
        downloads = [(path, headers) for method, path, headers in self.requests if method == "GET"]
        return [headers.get("Range") for path, headers in downloads if "/api/" not in path]

    def look_up(self, path, cdn):
        """Return status, headers, and content or File."""
        if path in self.files:
            return 200, {}, self.files[path]
        match = re.fullmatch(r"/api/models/(\w+/\w+)(?:/revision/(\w+))?|/(\w+/\w+)/resolve/(\w+)/(.+)", path)
        if not match:
            return 404, {}, b""
        repo = match[1] or match[3]
        revision = match[2] or match[4] or "main"
        name = match[5]
        if repo != REPO:
            return 404, {"X-Error-Code": "RepoNotFound"}, b""
        if self.hub_error and name:
            return self.hub_error
        if revision not in ("main", COMMIT):
            return 404, {"X-Error-Code": "RevisionNotFound"}, b""
        if not name:
            siblings = [{"rfilename": name} for name in self.repo]
            return 200, {}, json.dumps({"id": repo, "sha": COMMIT, "siblings": siblings}).encode()
        if name not in self.repo:
            return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}, b""
        headers = {"X-Repo-Commit": COMMIT, "X-Linked-ETag": f'"{SHA256}"', "X-Linked-Size": str(len(GOOD))}
        return 302, headers | self.hub_headers | {"Location": f"{cdn}/cdn/{name}"}, b""


def handler(site, cdn):
    """Return a handler class for the site; `cdn()` is the address to which the Hub redirects."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args):
            pass

        def do_HEAD(self):
            self.respond()

        def do_GET(self):
            self.respond()

        def respond(self):
            site.requests.append((self.command, self.path, self.headers))
            status, headers, file = site.look_up(self.path, cdn())
            if not isinstance(file, File):
                return self.send(status, headers | {"Content-Length": str(len(file))}, file)
            if file.statuses:
                return self.send(file.statuses.pop(0), {"Content-Length": "0"}, b"")
            size, start = len(file.content), 0
            requested = self.headers.get("Range") if file.supports_ranges else None
            if requested and (not file.supports_if_range or self.headers.get("If-Range", file.etag) == file.etag):
                start = int(requested.removeprefix("bytes=").removesuffix("-"))
                if start >= size:
                    return self.send(416, {"Content-Length": "0"}, b"")
                status, headers = 206, {"Content-Range": f"bytes {start}-{size - 1}/{size}"}
            end = file.cuts.pop(0) if file.cuts else size
            self.send(status, headers | {"ETag": file.etag, "Content-Length": str(size - start)}, b"")
            for chunk in (file.content[start : end // 2], file.content[max(start, end // 2) : end]):
                site.bytes_sent += len(chunk)  # before the client can finish and the test can read it
                self.wfile.write(chunk)
                if file.pause:
                    file.pause.wait(5)
            self.close_connection = end < size

        def send(self, status, headers, content):
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

    return Handler
