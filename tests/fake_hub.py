"""A Hub on 127.0.0.1 that takes repositories and commits, enough for ``HfApi.create_repo`` and ``upload_folder``."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

TOKEN = "hf_of_nobody"


class Hub:
    """``files``: (kind, repository) → path → bytes; ``private``: of each; ``messages``: of the commits."""

    def __init__(self) -> None:
        self.files: dict[tuple[str, str], dict[str, bytes]] = {}
        self.private: dict[tuple[str, str], Any] = {}
        self.messages: list[str] = []
        self.cards: list[str] = []
        self.endpoint = ""

    def create(self, asked: dict[str, Any]) -> dict[str, Any]:
        kind, name = asked.get("type") or "model", f"{asked.get('organization') or 'somebody'}/{asked['name']}"
        self.files.setdefault((kind, name), {})
        self.private[kind, name] = asked.get("visibility", asked.get("private"))
        return {"url": f"{self.endpoint}/{'datasets/' if kind == 'dataset' else ''}{name}"}

    def commit(self, kind: str, name: str, lines: list[dict[str, Any]]) -> dict[str, Any]:
        for line in lines:
            if line["key"] == "header":
                self.messages.append(line["value"]["summary"])
            elif line["key"] == "file":
                self.files[kind, name][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        return {"commitUrl": f"{self.endpoint}/{name}/commit/1", "commitOid": "1" * 40}


@contextmanager
def hub() -> Iterator[Hub]:
    """A running one; 401 without the token."""
    found = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            where = self.path.partition("?")[0].strip("/").split("/")
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                self.answer(401, {"error": "Invalid username or password."})
            elif where == ["api", "repos", "create"]:
                self.answer(200, found.create(json.loads(body)))
            elif where == ["api", "validate-yaml"]:
                found.cards.append(json.loads(body)["content"])
                self.answer(200, {"warnings": [], "errors": []})
            elif where[4] == "preupload":
                modes = [
                    {"uploadMode": "regular", "shouldIgnore": False, "path": f["path"]}
                    for f in json.loads(body)["files"]
                ]
                self.answer(200, {"files": modes})
            elif where[4] == "commit":
                lines = [json.loads(line) for line in body.splitlines()]
                self.answer(200, found.commit(where[1].removesuffix("s"), "/".join(where[2:4]), lines))
            else:
                self.answer(404, {"error": self.path})

        def answer(self, status: int, said: dict[str, Any]) -> None:
            data = json.dumps(said).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
