"""A Hugging Face Hub of one process, as far as uploading a folder and downloading a snapshot need it."""

from __future__ import annotations

import base64
import fnmatch
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit


class SmallHub(ThreadingHTTPServer):
    """Serves repositories from memory.

    Attributes:
        repositories: The files of each, by name.
        asked: Paths of all requests, with their methods.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.asked: list[str] = []

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def commit(self, repository: str) -> str:
        content = sorted(self.repositories[repository].items())
        return hashlib.sha1(repr(content).encode()).hexdigest()


@contextmanager
def small_hub() -> Iterator[SmallHub]:
    """Run a hub for the block."""
    with SmallHub() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: SmallHub

    def log_message(self, *args: Any) -> None:
        """Print nothing."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self._path()
        if path.startswith("/api/models/"):
            repository, _, rest = path.removeprefix("/api/models/").partition("/revision/")
            if "/tree/" in path:
                repository = path.removeprefix("/api/models/").partition("/tree/")[0]
            if repository not in self.server.repositories:
                return self._missing("RepoNotFound")
            files = self.server.repositories[repository]
            if "/tree/" in path:
                return self._json([_described(name, content) for name, content in files.items()])
            listed = [{"rfilename": name} for name in files]
            sha = self.server.commit(repository)
            return self._json({"id": repository, "modelId": repository, "sha": sha, "siblings": listed, "tags": []})
        repository, _, rest = path.strip("/").partition("/resolve/")
        content = self.server.repositories.get(repository, {}).get(rest.partition("/")[2])
        if content is None:
            return self._missing("EntryNotFound")
        more = {"X-Repo-Commit": self.server.commit(repository), "ETag": f'"{_git(content)}"'}
        return self._answer(content, "application/octet-stream", more)

    def do_POST(self) -> None:
        path = self._path()
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = "/".join(part for part in (asked.get("organization"), asked["name"]) if part)
            self.server.repositories.setdefault(name, {})
            return self._json({"url": f"{self.server.endpoint}/{name}", "id": name})
        if path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        owner, name, *what = path.removeprefix("/api/models/").split("/")
        repository = f"{owner}/{name}"
        if what[0] == "preupload":
            how = {"uploadMode": "regular", "shouldIgnore": False}
            files = [{"path": one["path"], **how} for one in json.loads(body)["files"]]
            return self._json({"files": files})
        for line in body.decode().splitlines():
            entry = json.loads(line)
            value, held = entry["value"], self.server.repositories[repository]
            if entry["key"] == "file":
                held[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "deletedFile":
                del held[value["path"]]
        sha = self.server.commit(repository)
        return self._json({"commitUrl": f"{self.server.endpoint}/{repository}/commit/{sha}", "commitOid": sha})

    def _path(self) -> str:
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append(f"{self.command} {path}")
        return path

    def _missing(self, code: str) -> None:
        self._answer(b"{}", "application/json", {"X-Error-Code": code}, 404)

    def _json(self, value: object) -> None:
        self._answer(json.dumps(value).encode(), "application/json", {})

    def _answer(self, content: bytes, kind: str, more: dict[str, str], status: int = 200) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(content)), **more}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _described(name: str, content: bytes) -> dict[str, Any]:
    return {"type": "file", "path": name, "size": len(content), "oid": _git(content)}


def _git(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def matching(asked: list[str], pattern: str) -> list[str]:
    """Return the requests that match a pattern."""
    return [one for one in asked if fnmatch.fnmatch(one, pattern)]
