"""A stand-in for the Hugging Face hub on loopback: the few requests that names, listings and files take. Run as a process: FOLDER, prints its port.

`FOLDER/datasets/<org>/<name>/` and `FOLDER/models/<org>/<name>/` hold the files of one commit each. Requests are written to `FOLDER/requests`.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" + "0" * 34
ROOT = Path(sys.argv[1])
API = re.compile(r"/api/(datasets|models)/([^/]+/[^/]+)(?:/(revision|tree|paths-info)/([^/]+)(?:/(.*))?)?")
FILE = re.compile(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


class Hub(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self, body: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def missing(self, code: str) -> None:
        self.answer(b"{}", 404, X_Error_Code=code, X_Error_Message=code)

    def do_GET(self) -> None:
        with (ROOT / "requests").open("a") as log:
            log.write(f"{self.command} {self.path}\n")
        path = unquote(urlsplit(self.path).path)
        if found := API.fullmatch(path):
            self.api(*found.groups())
        elif found := FILE.fullmatch(path):
            kind, name, revision, file = found.groups()
            self.file(ROOT / ("datasets" if kind else "models") / name / file, revision)
        else:
            self.missing("RepoNotFound")

    do_HEAD = do_GET

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.body = body.decode()
        self.do_GET()

    def api(self, kind: str, name: str, what: str | None, revision: str | None, below: str | None) -> None:
        folder = ROOT / kind / name
        if not folder.is_dir():
            self.missing("RepoNotFound")
        elif revision not in (None, "main", COMMIT):
            self.missing("RevisionNotFound")
        elif what in (None, "revision"):
            files = [{"rfilename": str(path.relative_to(folder))} for path in sorted(folder.rglob("*")) if path.is_file()]
            self.answer(json.dumps({"id": name, "sha": COMMIT, "private": False, "tags": [], "siblings": files}).encode())
        else:
            entries = [self.entry(folder, path) for path in sorted(folder.rglob("*"))]
            if what == "paths-info":
                asked = set(re.findall(r"[\w./-]+", unquote(self.body)))
                entries = [entry for entry in entries if entry["path"] in asked]
            elif below:
                entries = [entry for entry in entries if entry["path"].startswith(f"{below}/")]
                if not entries:
                    return self.missing("EntryNotFound")
            self.answer(json.dumps(entries).encode(), Content_Type="application/json")
        return None

    def entry(self, folder: Path, path: Path) -> dict[str, Any]:
        name = str(path.relative_to(folder))
        if path.is_dir():
            return {"type": "directory", "oid": "0" * 40, "size": 0, "path": name}
        return {"type": "file", "oid": hashlib.sha1(path.read_bytes()).hexdigest(), "size": path.stat().st_size, "path": name}

    def file(self, path: Path, revision: str) -> None:
        if not path.is_file():
            return self.missing("EntryNotFound")
        content = path.read_bytes()
        facts = {"X_Repo_Commit": COMMIT, "ETag": f'"{hashlib.sha1(content).hexdigest()}"', "Accept_Ranges": "bytes"}
        if span := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(span[1]), min(int(span[2] or len(content) - 1), len(content) - 1)
            total = {"Content_Range": f"bytes {first}-{last}/{len(content)}"}
            return self.answer(content[first : last + 1], 206, **facts, **total)
        return self.answer(content, 200, **facts)

    def log_message(self, *_: object) -> None:
        pass


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    print(server.server_port, flush=True)
    server.serve_forever()
