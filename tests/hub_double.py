"""A Hugging Face hub on localhost, for uploads and downloads: `with HubDouble() as hub: hub.url`.

It keeps repositories in memory and implements as much of the hub's HTTP interface as creating,
committing to, listing and reading a repository need. Clients find it through the environment
that `environment` returns; huggingface_hub reads it on import, so a client is a process of its own.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

API = r"/api/(?P<kind>models|datasets)/(?P<repo>[^/]+/[^/]+)"


class HubDouble:
    """The server; `repos` maps (kind, name) to {path: content}."""

    def __init__(self) -> None:
        self.repos: dict[tuple[str, str], dict[str, bytes]] = {}
        self.requests: list[str] = []

    def __enter__(self) -> HubDouble:
        double = self

        class Handler(_Handler):
            hub = double

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def environment(self, home: Path) -> dict[str, str]:
        """What a client's process needs; `home` takes its caches."""
        return {
            "HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1",
            "HF_TOKEN": "hf_double", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1",
        }  # fmt: skip

    def sha(self, kind: str, repo: str) -> str:
        """The commit: a hash of everything in the repository."""
        files = self.repos[kind, repo]
        digest = hashlib.sha1("".join(f"{k}{_oid(v)}" for k, v in sorted(files.items())).encode())
        return digest.hexdigest()


def _oid(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: HubDouble
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_GET

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        routes: list[tuple[str, Callable[..., None]]] = [
            (r"/api/repos/create", self._create),
            (r"/api/validate-yaml", self._validate),
            (API + r"/preupload/[^/]+", self._preupload),
            (API + r"/commit/[^/]+", self._commit),
            (API + r"/tree/[^/]+(?:/(?P<folder>.*))?", self._tree),
            (API + r"/paths-info/[^/]+", self._paths),
            (API + r"(?:/revision/(?P<revision>[^/]+))?", self._info),
            (r"/(?P<kind>datasets/)?(?P<repo>[^/]+/[^/]+)/resolve/[^/]+/(?P<file>.+)", self._file),
        ]
        for pattern, route in routes:
            if match := re.fullmatch(pattern, path):
                named = match.groupdict()
                if "repo" in named:
                    kind = (
                        "datasets" if (named.pop("kind") or "models").startswith("d") else "models"
                    )
                    named["kind"] = kind
                    if (kind, named["repo"]) not in self.hub.repos:
                        self._missing("RepoNotFound")
                        return
                route(body, **named)
                return
        self._missing("EntryNotFound")

    def _json(self, values: object) -> None:
        self._send(200, json.dumps(values).encode(), {"Content-Type": "application/json"})

    def _missing(self, code: str) -> None:
        self._send(404, b"", {"X-Error-Code": code, "X-Error-Message": "not found"})

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _create(self, body: bytes) -> None:
        asked = json.loads(body)
        name = f"{asked.get('organization') or 'tester'}/{asked['name'].rpartition('/')[2]}"
        kind = f"{asked.get('type') or 'model'}s"
        self.hub.repos.setdefault((kind, name), {})
        self._json({"url": f"{self.hub.url}/{name}", "name": name, "id": name})

    def _validate(self, body: bytes) -> None:
        self._json({"errors": [], "warnings": []})

    def _preupload(self, body: bytes, kind: str, repo: str) -> None:
        files = [
            {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
            for file in json.loads(body)["files"]
        ]
        self._json({"files": files})

    def _commit(self, body: bytes, kind: str, repo: str) -> None:
        for line in filter(None, body.splitlines()):
            entry = json.loads(line)
            if entry["key"] == "file":
                content = base64.b64decode(entry["value"]["content"])
                self.hub.repos[kind, repo][entry["value"]["path"]] = content
        sha = self.hub.sha(kind, repo)
        self._json({"commitUrl": f"{self.hub.url}/{repo}/commit/{sha}", "commitOid": sha})

    def _entries(self, kind: str, repo: str) -> list[dict[str, object]]:
        files = self.hub.repos[kind, repo]
        return [
            {"type": "file", "path": path, "oid": _oid(content), "size": len(content)}
            for path, content in sorted(files.items())
        ]

    def _tree(self, body: bytes, kind: str, repo: str, folder: str | None) -> None:
        inside = f"{folder.rstrip('/')}/" if folder else ""
        recursive = "recursive=true" in self.path.lower() or "recursive=1" in self.path
        found: dict[str, dict[str, object]] = {}
        for entry in self._entries(kind, repo):
            path = str(entry["path"])
            if path.startswith(inside):
                first, slash, _ = path.removeprefix(inside).partition("/")
                if slash and not recursive:
                    entry = {
                        "type": "directory",
                        "path": inside + first,
                        "oid": "0" * 40,
                        "size": 0,
                    }
                found[str(entry["path"])] = entry
        if inside and not found:
            self._missing("EntryNotFound")
        else:
            self._json(list(found.values()))

    def _paths(self, body: bytes, kind: str, repo: str) -> None:
        asked = (
            json.loads(body)["paths"] if body.startswith(b"{") else parse_qs(body.decode())["paths"]
        )
        self._json([e for e in self._entries(kind, repo) if e["path"] in asked])

    def _info(self, body: bytes, kind: str, repo: str, revision: str | None) -> None:
        if revision not in (None, "main", self.hub.sha(kind, repo)):
            self._missing("RevisionNotFound")
            return
        siblings = [{"rfilename": entry["path"]} for entry in self._entries(kind, repo)]
        self._json(
            {"id": repo, "sha": self.hub.sha(kind, repo), "siblings": siblings, "private": False,
             "downloads": 0, "tags": [], "disabled": False, "gated": False}
        )  # fmt: skip

    def _file(self, body: bytes, kind: str, repo: str, file: str) -> None:
        content = self.hub.repos[kind, repo].get(file)
        if content is None:
            self._missing("EntryNotFound")
            return
        headers = {
            "ETag": f'"{_oid(content)}"',
            "X-Repo-Commit": self.hub.sha(kind, repo),
            "Accept-Ranges": "none",
        }
        if match := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")):
            first, last = map(int, match.groups())
            headers["Content-Range"] = f"bytes {first}-{min(last, len(content) - 1)}/{len(content)}"
            self._send(206, content[first : last + 1], headers)
            return
        self._send(200, content, headers)  # fmt: skip
