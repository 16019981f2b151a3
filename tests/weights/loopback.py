"""A server on loopback: files with ETags and ranges, connections that are cut, and what the Hub's client asks a Hub."""

import dataclasses
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler

import numpy as np

GOOD = np.random.default_rng(0).bytes(300_000)
BAD = bytes(len(GOOD))
SHA256, MD5 = hashlib.sha256(GOOD).hexdigest(), hashlib.md5(GOOD).hexdigest()
COMMIT = "c0ffee" + "0" * 34
REPO, NAME = "lab/net", "model.safetensors"


@dataclasses.dataclass
class File:
    """What the server has under one path, and how it serves it."""

    content: bytes = GOOD
    etag: str = '"1"'
    ranges: bool = True
    heeds_if_range: bool = True
    cuts: list[int] = dataclasses.field(default_factory=list)  # for each GET in turn: hang up at this byte of the file
    answers: list[int] = dataclasses.field(default_factory=list)  # for each GET in turn: this status instead
    hold: threading.Event | None = None  # wait for it in the middle of the content


class Site:
    """Files to serve, a Hub to be, and the requests that came."""

    def __init__(self):
        self.files, self.repo, self.refused, self.linked = {}, {}, None, {}
        self.asked, self.sent = [], 0

    @property
    def ranges(self):
        """The Range of each request for a file's content."""
        return [headers.get("Range") for method, path, headers in self.asked if method == "GET" and "/api/" not in path]

    def look_up(self, path, cdn):
        """Returns status, headers, and content or File."""
        if path in self.files:
            return 200, {}, self.files[path]
        found = re.fullmatch(r"/api/models/(\w+/\w+)(?:/revision/(\w+))?|/(\w+/\w+)/resolve/(\w+)/(.+)", path)
        if not found:
            return 404, {}, b""
        repo, revision, name = found[1] or found[3], found[2] or found[4] or "main", found[5]
        if repo != REPO:
            return 404, {"X-Error-Code": "RepoNotFound"}, b""
        if self.refused and name:
            return self.refused
        if revision not in ("main", COMMIT):
            return 404, {"X-Error-Code": "RevisionNotFound"}, b""
        if not name:
            siblings = [{"rfilename": name} for name in self.repo]
            return 200, {}, json.dumps({"id": repo, "sha": COMMIT, "siblings": siblings}).encode()
        if name not in self.repo:
            return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}, b""
        linked = {"X-Repo-Commit": COMMIT, "X-Linked-ETag": f'"{SHA256}"', "X-Linked-Size": str(len(GOOD))}
        return 302, linked | self.linked | {"Location": f"{cdn}/cdn/{name}"}, b""


def handler(site, cdn):
    """A handler class for the site; `cdn()` is the address that the Hub sends on to, another one than its own."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args):
            pass

        def do_HEAD(self):
            self.respond()

        def do_GET(self):
            self.respond()

        def respond(self):
            site.asked.append((self.command, self.path, self.headers))
            status, headers, file = site.look_up(self.path, cdn())
            if not isinstance(file, File):
                return self.send(status, headers | {"Content-Length": str(len(file))}, file)
            if file.answers:
                return self.send(file.answers.pop(0), {"Content-Length": "0"}, b"")
            size, start = len(file.content), 0
            asked = self.headers.get("Range") if file.ranges else None
            if asked and (not file.heeds_if_range or self.headers.get("If-Range", file.etag) == file.etag):
                start = int(asked.removeprefix("bytes=").removesuffix("-"))
                if start >= size:
                    return self.send(416, {"Content-Length": "0"}, b"")
                status, headers = 206, {"Content-Range": f"bytes {start}-{size - 1}/{size}"}
            end = file.cuts.pop(0) if file.cuts else size
            self.send(status, headers | {"ETag": file.etag, "Content-Length": str(size - start)}, b"")
            for piece in (file.content[start : end // 2], file.content[max(start, end // 2) : end]):
                site.sent += len(piece)  # before the client can have it all, and look
                self.wfile.write(piece)
                if file.hold:
                    file.hold.wait(5)
            self.close_connection = end < size

        def send(self, status, headers, content):
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

    return Handler
