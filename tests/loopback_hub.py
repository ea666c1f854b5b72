"""A small hub on 127.0.0.1: the part of the Hub's HTTP interface that publishing and loading a model uses,
and that ``datasets`` reads a data set through.

It answers the real ``huggingface_hub`` client (creating repositories, LFS uploads, commits, pull requests, branches,
tags, listings, downloads), so that tests can push a folder and load it back by repository id without a network.

>>> with LoopbackHub() as hub:
...     hub.endpoint.startswith("http://127.0.0.1:")
True

The client must not use the Xet protocol, which this hub does not speak: set ``HF_HUB_DISABLE_XET=1``.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.loopback_card_rules import BLOCK, card_errors

TOKEN = "loopback-token"
MAIN = "refs/heads/main"


class Refusal(Exception):
    """An answer other than 200: the status, the Hub's error code, and a message."""

    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        super().__init__(message or code)
        self.status, self.code, self.message = status, code, message


@dataclass(frozen=True)
class Blob:
    """One file of a commit."""

    data: bytes
    lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def git_id(self) -> str:
        return hashlib.sha1(b"blob %d\0" % len(self.data) + self.data).hexdigest()


@dataclass
class Repository:
    """Commits (id to files) and references (full name to commit id) of one model."""

    private: bool
    commits: dict[str, dict[str, Blob]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def commit(self, ref: str, files: dict[str, Blob]) -> str:
        """Store a new state of the files, let the reference point to it, and return the commit's id."""
        names = json.dumps([len(self.commits), ref, {path: blob.sha256 for path, blob in files.items()}])
        oid = hashlib.sha1(names.encode()).hexdigest()
        self.commits[oid], self.refs[ref] = files, oid
        return oid

    def resolve(self, revision: str) -> str:
        """The commit that a branch, a tag, a full reference or a commit id names."""
        if revision in self.commits:
            return revision
        for ref in (revision, f"refs/heads/{revision}", f"refs/tags/{revision}"):
            if ref in self.refs:
                return self.refs[ref]
        raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")


class LoopbackHub:
    """The server with its state, as a context manager.

    ``requests`` lists every call as "METHOD path"; ``before_put`` is called before an LFS file is stored and may raise
    ``Refusal`` to break an upload. Writing, and reading a private repository, needs ``TOKEN``.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.lfs: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.before_put: Callable[[str], None] | None = None
        self.lock = threading.RLock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "LoopbackHub":
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def add_dataset(self, repo_id: str, files: dict[str, bytes]) -> str:
        """Put a data set on the hub; returns the commit to pin."""
        repository = self.repositories.setdefault(repo_id, Repository(private=False))
        return repository.commit(MAIN, {path: Blob(data, lfs=False) for path, data in files.items()})

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        """What a clone of the repository at a revision would hold."""
        repository = self.repositories[repo_id]
        return {path: blob.data for path, blob in repository.commits[repository.resolve(revision)].items()}

    def writes(self) -> list[str]:
        """The calls that could have changed something."""
        return [call for call in self.requests if not call.startswith(("GET", "HEAD")) and "validate-yaml" not in call]

    def repository(self, repo_id: str, signed_in: bool) -> Repository:
        found = self.repositories.get(repo_id)
        if found is None or (found.private and not signed_in):  # the Hub does not reveal private repositories either
            raise Refusal(404 if signed_in else 401, "RepoNotFound", "Repository not found")
        return found


class _Handler(BaseHTTPRequestHandler):
    """One request: a table of patterns leads to the methods below, each returns what is sent as JSON."""

    hub: LoopbackHub
    protocol_version = "HTTP/1.1"
    ROUTES = (
        ("POST", r"/api/validate-yaml", "validate_yaml"),
        ("POST", r"/api/repos/create", "create"),
        ("POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/preupload/(?P<revision>[^/]+)", "preupload"),
        ("POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/commit/(?P<revision>[^/]+)", "commit"),
        ("POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/branch/(?P<name>[^/]+)", "branch"),
        ("POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/tag/(?P<revision>[^/]+)", "tag"),
        ("POST", r"/(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch", "lfs_batch"),
        ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", "lfs_put"),
        ("GET", r"/api/datasets/(?P<repo>[^/]+/[^/]+)/tree/(?P<revision>[^/]+)(?:/(?P<folder>.*))?", "tree"),
        ("GET", r"/api/datasets/(?P<repo>[^/]+/[^/]+)(?:/revision/(?P<revision>[^/]+))?", "info"),
        ("POST", r"/api/datasets/(?P<repo>[^/]+/[^/]+)/paths-info/(?P<revision>[^/]+)", "paths_info"),
        ("GET", r"/datasets/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "download"),
        ("HEAD", r"/datasets/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "download"),
        ("GET", r"/api/models/(?P<repo>[^/]+/[^/]+)/refs", "refs"),
        ("GET", r"/api/models/(?P<repo>[^/]+/[^/]+)/tree/(?P<revision>[^/]+)(?:/(?P<folder>.*))?", "tree"),
        ("GET", r"/api/models/(?P<repo>[^/]+/[^/]+)(?:/revision/(?P<revision>[^/]+))?", "info"),
        ("GET", r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "download"),
        ("HEAD", r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "download"),
    )

    def answer(self) -> None:
        url = urlsplit(self.path)
        self.query = {key: values[-1] for key, values in parse_qs(url.query).items()}
        self.body = self.read_body()
        self.signed_in = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        try:
            with self.hub.lock:
                self.hub.requests.append(f"{self.command} {unquote(url.path)}")
            for method, pattern, name in self.ROUTES:
                if method == self.command and (match := re.fullmatch(pattern, url.path)):
                    if method == "POST" and name not in ("validate_yaml", "paths_info") and not self.signed_in:
                        raise Refusal(401, message="Invalid username or password.")
                    arguments = {key: unquote(value) for key, value in match.groupdict().items() if value is not None}
                    with self.hub.lock:
                        result = getattr(self, name)(**arguments)
                    return None if result is None else self.send(200, json.dumps(result).encode())
            raise Refusal(404, message=f"this hub does not know {self.command} {url.path}")
        except Refusal as refusal:
            headers = {"X-Error-Code": refusal.code, "X-Error-Message": refusal.message}
            self.send(refusal.status, json.dumps({"error": refusal.message}).encode(), headers)

    do_GET = do_HEAD = do_POST = do_PUT = answer

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        standard = {"Content-Length": str(len(body)), "Content-Type": "application/json"}
        for key, value in (standard | (headers or {})).items():
            if value:
                self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Keep the test output quiet; ``hub.requests`` is the log."""

    # --- writing ---------------------------------------------------------------------------------------------------
    def validate_yaml(self) -> dict[str, Any] | None:
        content = json.loads(self.body)["content"]
        empty = [] if BLOCK.match(content) else [{"message": "empty or missing yaml metadata in repo card"}]
        if errors := [{"message": message} for message in card_errors(content)]:
            return self.send(400, json.dumps({"error": "Bad request", "errors": errors, "warnings": empty}).encode())
        return {"errors": [], "warnings": empty}

    def create(self) -> dict[str, Any]:
        wish = json.loads(self.body)
        repo_id = f"{wish.get('organization') or 'somebody'}/{wish['name']}"
        url = f"{self.hub.endpoint}/{repo_id}"
        if repo_id in self.hub.repositories:
            self.send(409, json.dumps({"error": "You already created this model repo", "url": url}).encode())
            return None
        private = wish.get("visibility") == "private" or bool(wish.get("private"))
        repository = self.hub.repositories[repo_id] = Repository(private)
        repository.commit(MAIN, {".gitattributes": Blob(b"*.safetensors filter=lfs\n", lfs=False)})
        return {"url": url, "name": repo_id}

    def preupload(self, repo: str, revision: str) -> dict[str, Any]:
        repository = self.hub.repository(repo, self.signed_in)
        present = repository.commits[repository.resolve(revision)]
        files = []
        for item in json.loads(self.body)["files"]:
            path, old = item["path"], present.get(item["path"])
            mode = "lfs" if path.endswith((".safetensors", ".onnx", ".png")) or item["size"] > 10_000_000 else "regular"
            oid = None if old is None else old.sha256 if mode == "lfs" else old.git_id
            files.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return {"files": files}

    def lfs_batch(self, repo: str) -> dict[str, Any]:
        self.hub.repository(repo, self.signed_in)
        objects = []
        for item in json.loads(self.body)["objects"]:
            upload = {"href": f"{self.hub.endpoint}/lfs/{item['oid']}"}  # like the Hub's: no token is sent there
            stored = item["oid"] in self.hub.lfs  # no actions: the object is here already, the client sends nothing
            objects.append({**item, **({} if stored else {"actions": {"upload": upload}})})
        return {"transfer": "basic", "objects": objects}

    def lfs_put(self, oid: str) -> dict[str, Any]:
        if self.hub.before_put is not None:
            self.hub.before_put(oid)
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise Refusal(422, message="the content does not have this hash")
        self.hub.lfs[oid] = self.body
        return {}

    def commit(self, repo: str, revision: str) -> dict[str, Any]:
        repository = self.hub.repository(repo, self.signed_in)
        head = repository.resolve(revision)
        files = dict(repository.commits[head])
        for line in self.body.splitlines():
            entry = json.loads(line)
            kind, value = entry["key"], entry["value"]
            if kind == "header":
                if value.get("parentCommit", head) != head:
                    raise Refusal(412, message="A commit has happened since. Please refresh and try again.")
            elif kind == "file":
                files[value["path"]] = Blob(base64.b64decode(value["content"]), lfs=False)
            elif kind == "lfsFile":
                if value["oid"] not in self.hub.lfs:
                    raise Refusal(400, message=f"Your push references LFS object {value['oid']}, never uploaded")
                files[value["path"]] = Blob(self.hub.lfs[value["oid"]], lfs=True)
            elif kind == "deletedFile":
                if files.pop(value["path"], None) is None:
                    raise Refusal(404, "EntryNotFound", "A file with this name doesn't exist")
            else:
                raise Refusal(400, message=f"this hub does not know the operation {kind}")
        number = 1 + sum(ref.startswith("refs/pr/") for ref in repository.refs)
        new_pr = self.query.get("create_pr") == "1"
        target = revision if revision.startswith("refs/") else f"refs/heads/{revision}"
        oid = repository.commit(f"refs/pr/{number}" if new_pr else target, files)
        answer = {"success": True, "commitOid": oid, "commitUrl": f"{self.hub.endpoint}/{repo}/commit/{oid}"}
        if new_pr:
            answer["pullRequestUrl"] = f"{self.hub.endpoint}/{repo}/discussions/{number}"
        return answer

    def branch(self, repo: str, name: str) -> dict[str, Any]:
        return self.add_ref(repo, f"refs/heads/{name}", json.loads(self.body or b"{}").get("startingPoint", "main"))

    def tag(self, repo: str, revision: str) -> dict[str, Any]:
        return self.add_ref(repo, f"refs/tags/{json.loads(self.body)['tag']}", revision)

    def add_ref(self, repo: str, ref: str, revision: str) -> dict[str, Any]:
        repository = self.hub.repository(repo, self.signed_in)
        if ref in repository.refs:
            raise Refusal(409, message=f"{ref} exists already")
        repository.refs[ref] = repository.resolve(revision)
        return {}

    # --- reading ---------------------------------------------------------------------------------------------------
    def info(self, repo: str, revision: str = "main") -> dict[str, Any]:
        repository = self.hub.repository(repo, self.signed_in)
        oid = repository.resolve(revision)
        siblings = [{"rfilename": path} for path in repository.commits[oid]]
        return {"id": repo, "sha": oid, "private": repository.private, "siblings": siblings, "tags": []}

    def refs(self, repo: str) -> dict[str, Any]:
        references = self.hub.repository(repo, self.signed_in).refs
        answer: dict[str, Any] = {"branches": [], "tags": [], "converts": [], "pullRequests": []}
        for ref, oid in references.items():
            kind = {"heads": "branches", "tags": "tags", "pr": "pullRequests"}[ref.split("/")[1]]
            answer[kind].append({"name": ref.split("/", 2)[2], "ref": ref, "targetCommit": oid})
        return answer

    def tree(self, repo: str, revision: str, folder: str = "") -> list[dict[str, Any]] | None:
        repository = self.hub.repository(repo, self.signed_in)
        files = repository.commits[repository.resolve(revision)]
        prefix = f"{folder.rstrip('/')}/" if folder else ""
        entries: dict[str, dict[str, Any]] = {}
        for path, blob in sorted(files.items()):
            if not path.startswith(prefix):
                continue
            parts = path.removeprefix(prefix).split("/")
            for depth in range(1, len(parts)):
                name = prefix + "/".join(parts[:depth])
                entries.setdefault(name, {"type": "directory", "path": name, "oid": "0" * 40, "size": 0})
            entry: dict[str, Any] = {"type": "file", "path": path, "size": len(blob.data), "oid": blob.git_id}
            if blob.lfs:
                entry["lfs"] = {"oid": blob.sha256, "size": len(blob.data), "pointerSize": 130}
            entries[path] = entry
        if prefix and not entries:
            raise Refusal(404, "EntryNotFound", f"{folder} does not exist on {revision}")
        deep = self.query.get("recursive", "").lower() in ("1", "true")
        return [entry for name, entry in entries.items() if deep or "/" not in name.removeprefix(prefix)]

    def paths_info(self, repo: str, revision: str) -> list[dict[str, Any]]:
        """What lies at some paths: the form is sent as JSON or as fields."""
        kind = self.headers.get("Content-Type", "")
        wish = json.loads(self.body) if "json" in kind else parse_qs(self.body.decode())
        self.query["recursive"] = "1"
        return [entry for entry in self.tree(repo, revision) if entry["path"] in wish["paths"]]

    def download(self, repo: str, revision: str, path: str) -> None:
        repository = self.hub.repository(repo, self.signed_in)
        oid = repository.resolve(revision)
        blob = repository.commits[oid].get(path)
        if blob is None:
            headers = {"X-Repo-Commit": oid, "X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}
            return self.send(404, b"{}", headers)
        etag = blob.sha256 if blob.lfs else blob.git_id
        headers = {"X-Repo-Commit": oid, "ETag": f'"{etag}"', "Content-Type": "application/octet-stream"}
        part = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if part is None:
            return self.send(200, blob.data, headers)
        begin, end = int(part[1]), min(int(part[2] or len(blob.data)), len(blob.data) - 1)
        headers["Content-Range"] = f"bytes {begin}-{end}/{len(blob.data)}"
        return self.send(206, blob.data[begin : end + 1], headers)
