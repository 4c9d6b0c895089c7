"""As much of the Hugging Face Hub as its own client needs to create, read and write model repositories, and to read
those of data sets.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlparse

TOKEN, OWNER = "hf_" + "a" * 34, "lab"


class Hub:
    """Its repositories: by name the branches, by commit the files."""

    def __init__(self) -> None:
        self.branches: dict[str, dict[str, str]] = {}
        self.commits: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.gated: set[str] = set()
        self.lfs: dict[str, bytes] = {}
        self.messages: list[str] = []
        self.broken = 0  # status that everything is answered with
        self.asked: list[str] = []
        self.address = ""

    def commit(self, name: str, files: dict[str, bytes], branch: str = "main") -> str:
        """Put files into a repository, as its new content."""
        listed = [[path, hashlib.sha1(data).hexdigest()] for path, data in sorted(files.items())]
        sha = hashlib.sha1(json.dumps([name, branch, listed, len(self.commits)]).encode()).hexdigest()
        self.commits[sha] = dict(files)
        self.branches.setdefault(name, {})[branch] = sha
        return sha

    def files(self, name: str, revision: str = "main") -> dict[str, bytes]:
        """Return the content of a repository."""
        return self.commits[self.branches[name].get(revision, revision)]


class RefusedError(Exception):
    """An answer that is an error: status, the Hub's code."""

    def __init__(self, status: int, code: str = "", told: str = "") -> None:
        self.status, self.code, self.told = status, code, told


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, status, body=b"", **headers):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def handle_any(self):
        path = unquote(urlparse(self.path).path)
        self.hub.asked.append(f"{self.command} {path}")
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            if self.hub.broken:
                raise RefusedError(self.hub.broken)
            for pattern, method in self.ROUTES:
                if match := re.fullmatch(pattern, f"{self.command} {path}"):
                    return method(self, *match.groups())
            raise RefusedError(404, "RepoNotFound", f"no route {self.command} {path}")
        except RefusedError as error:
            return self.answer(error.status, {"error": error.told}, X_Error_Code=error.code, X_Error_Message=error.told)

    do_GET = do_HEAD = do_POST = do_PUT = handle_any  # noqa: N815 (http.server's names)

    def may_write(self, name):
        given = self.headers.get("Authorization", "")
        if not given:
            raise RefusedError(401)
        if given != f"Bearer {TOKEN}" or not name.startswith(f"{OWNER}/"):
            raise RefusedError(403)

    def repository(self, name):
        is_known = self.headers.get("Authorization", "") == f"Bearer {TOKEN}"
        if name not in self.hub.branches or (name in self.hub.private and not is_known):
            raise RefusedError(404 if is_known else 401, "RepoNotFound")
        if name in self.hub.gated:
            raise RefusedError(403, "GatedRepo")
        return self.hub.branches[name]

    def sha(self, name, revision):
        found = self.repository(name).get(revision, revision)
        if found not in self.hub.commits:
            raise RefusedError(404, "RevisionNotFound")
        return found

    def create(self):
        asked = json.loads(self.body)
        name = f"{asked.get('organization') or OWNER}/{asked['name']}"
        self.may_write(name)
        if name in self.hub.branches:
            return self.answer(409, {"error": "exists", "url": f"{self.hub.address}/{name}"})
        self.hub.commit(name, {".gitattributes": b"*.safetensors filter=lfs\n"})
        if asked.get("private") or asked.get("visibility") == "private":
            self.hub.private.add(name)
        return self.answer(200, {"url": f"{self.hub.address}/{name}", "name": name})

    def branch(self, name, branch):
        self.may_write(name)
        self.repository(name).setdefault(branch, self.repository(name)["main"])
        return self.answer(200, {})

    def info(self, name, revision="main"):
        sha = self.sha(name, revision)
        siblings = [{"rfilename": path} for path in self.hub.commits[sha]]
        return self.answer(200, {"id": name, "modelId": name, "sha": sha, "siblings": siblings, "tags": []})

    def tree(self, name, revision):
        sha = self.sha(name, revision)
        entries = [
            {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
            for path, data in self.hub.commits[sha].items()
        ]
        return self.answer(200, entries)

    def preupload(self, name, _):
        self.may_write(name)
        paths = [file["path"] for file in json.loads(self.body)["files"]]
        modes = {True: "lfs", False: "regular"}
        files = [
            {"path": path, "shouldIgnore": False, "uploadMode": modes[path.endswith(".safetensors")]} for path in paths
        ]
        return self.answer(200, {"files": files})

    def lfs_batch(self, name):
        self.may_write(name)
        objects = [
            {**entry, "actions": {"upload": {"href": f"{self.hub.address}/lfs/{entry['oid']}"}}}
            for entry in json.loads(self.body)["objects"]
        ]
        return self.answer(200, {"transfer": "basic", "objects": objects})

    def lfs_put(self, oid):
        assert hashlib.sha256(self.body).hexdigest() == oid
        self.hub.lfs[oid] = self.body
        return self.answer(200)

    def commit(self, name, revision):
        self.may_write(name)
        files = dict(self.hub.commits[self.sha(name, revision)])
        for line in self.body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                self.hub.messages.append(value["summary"])
            elif entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.hub.lfs[value["oid"]]
            elif entry["key"] == "deletedFile":
                del files[value["path"]]
        sha = self.hub.commit(name, files, revision)
        url = f"{self.hub.address}/{name}/commit/{sha}"
        return self.answer(200, {"success": True, "commitOid": sha, "commitUrl": url, "hookOutput": ""})

    def resolve(self, name, revision, path):
        sha = self.sha(name, revision)
        if path not in self.hub.commits[sha]:
            raise RefusedError(404, "EntryNotFound")
        data = self.hub.commits[sha][path]
        return self.answer(200, data, X_Repo_Commit=sha, ETag=f'"{hashlib.sha1(data).hexdigest()}"')

    def valid(self):
        return self.answer(200, {"errors": [], "warnings": []})

    NAME = r"((?:datasets/)?[^/]+/[^/]+)"  # of a model, or of a data set
    KIND = r"(?:models/|(?=datasets/))"
    ROUTES = [
        (r"POST /api/repos/create", create),
        (rf"POST /api/models/{NAME}/branch/(.+)", branch),
        (rf"GET /api/{KIND}{NAME}", info),
        (rf"GET /api/{KIND}{NAME}/revision/(.+)", info),
        (rf"GET /api/{KIND}{NAME}/tree/([^/]+)/?", tree),
        (rf"POST /api/models/{NAME}/preupload/(.+)", preupload),
        (rf"POST /{NAME}\.git/info/lfs/objects/batch", lfs_batch),
        (r"PUT /lfs/(\w+)", lfs_put),
        (rf"POST /api/models/{NAME}/commit/(.+)", commit),
        (rf"(?:GET|HEAD) /{NAME}/resolve/([^/]+)/(.+)", resolve),
        (r"POST /api/validate-yaml", valid),
    ]


@contextmanager
def hub_server() -> Iterator[Hub]:
    """Serve a Hub of this machine alone."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Serving", (Handler,), {"hub": hub}))
    hub.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
