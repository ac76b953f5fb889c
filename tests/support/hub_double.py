"""Servers on loopback for the tests: a double of the Hub, and a proxy that breaks off.

`Double` answers what huggingface_hub asks when it makes a repository, uploads (LFS and plain files), tags and downloads, with the
Hub's status codes and `X-Error-Code`. It is a double: there is no git behind it, and no Xet.
"""

import base64
import hashlib
import json
import re
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKENS = {"hf_writes": ("me", "org"), "hf_reads": ()}
"""Token: the names in which it may write. Both may read what is private in `me` and `org`."""


class Server:
    """A handler on a free port of 127.0.0.1, in a thread, until `close`."""

    def __init__(self, handler, **state) -> None:
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.http.daemon_threads = True
        vars(self.http).update(state)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()


class Double(Server):
    """The Hub's double. `repos`: name -> private, commits (id -> path -> content), refs (branch or tag -> id)."""

    def __init__(self) -> None:
        self.repos, self.asked = {}, []
        super().__init__(Hub, repos=self.repos, stored={}, asked=self.asked)


class Quiet(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format, *args) -> None:
        pass

    def answer(self, status: int, body=b"", **headers) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for key, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


class Hub(Quiet):
    def do_GET(self) -> None:
        self.route("")

    do_HEAD = do_GET

    def do_POST(self) -> None:
        self.route(self.rfile.read(int(self.headers.get("Content-Length", 0))))

    do_PUT = do_POST

    def route(self, body) -> None:
        path = self.path.split("?")[0]
        self.server.asked.append((self.command, path))
        for pattern, call in ROUTES:
            if (self.command == "HEAD" or pattern.startswith(self.command)) and (
                found := re.fullmatch(pattern.split(" ")[1], path)
            ):
                return call(self, body, *found.groups())
        return self.answer(404, {"error": "no such page"})

    # --- who asks, and what they may ---
    def token(self):
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def may_write(self, owner: str) -> bool:
        if self.token() not in TOKENS:
            self.answer(401, {"error": "Invalid username or password."})
        elif owner not in TOKENS[self.token()]:
            self.answer(403, {"error": "You don't have the rights to create a model under this namespace"})
        else:
            return True
        return False

    def readable(self, name: str, revision: str | None = None):
        """The repository and the commit; None once it was answered that there is none."""
        repo = self.server.repos.get(name)
        if repo is None or (repo["private"] and self.token() not in TOKENS):
            return self.answer(
                401 if self.token() not in TOKENS else 404,
                {"error": "Repository not found"},
                X_Error_Code="RepoNotFound",
            )
        commit = repo["refs"].get(revision or "main", revision)
        if commit not in repo["commits"]:
            return self.answer(404, {"error": f"Invalid rev id: {revision}"}, X_Error_Code="RevisionNotFound")
        return repo, commit

    # --- reading ---
    def whoami(self, _) -> None:
        if self.token() in TOKENS:
            return self.answer(200, {"name": "me", "type": "user", "orgs": [{"name": "org"}]})
        return self.answer(401, {"error": "Invalid user token."})

    def meta(self, _, name, revision=None) -> None:
        if found := self.readable(name, revision):
            files = [{"rfilename": path} for path in found[0]["commits"][found[1]]]
            self.answer(
                200,
                {"id": name, "sha": found[1], "private": found[0]["private"], "siblings": files, "tags": []},
            )

    def tree(self, _, name, revision) -> None:
        if found := self.readable(name, revision):
            rows = [
                {"type": "file", "path": path, **told(path, content)}
                for path, content in found[0]["commits"][found[1]].items()
            ]
            self.answer(200, rows)

    def file(self, _, name, revision, path) -> None:
        if found := self.readable(name, revision):
            content = found[0]["commits"][found[1]].get(path)
            if content is None:
                return self.answer(404, X_Error_Code="EntryNotFound")
            return self.answer(200, content, X_Repo_Commit=found[1], ETag=f'"{identity(path, content)}"')
        return None

    # --- writing ---
    def create(self, body) -> None:
        asked = json.loads(body)
        owner = asked["organization"] or "me"
        name = f"{owner}/{asked['name']}"
        if not self.may_write(owner):
            return None
        if name in self.server.repos:
            return self.answer(
                409,
                {
                    "error": "You already created this model repo",
                    "url": f"http://{self.headers['Host']}/{name}",
                },
            )
        first = hashlib.sha1(name.encode()).hexdigest()
        self.server.repos[name] = {
            "private": asked.get("visibility") == "private",
            "refs": {"main": first},
            "commits": {first: {".gitattributes": b"*.safetensors filter=lfs\n"}},
        }
        return self.answer(200, {"url": f"http://{self.headers['Host']}/{name}"})

    def yaml(self, body) -> None:
        good = json.loads(body)["content"].startswith("---\n")
        self.answer(
            200 if good else 400, {"warnings": [], "errors": [] if good else [{"message": "no metadata"}]}
        )

    def preupload(self, body, name, revision) -> None:
        if self.may_write(name.split("/")[0]) and (found := self.readable(name, revision)):
            there = found[0]["commits"][found[1]]
            self.answer(
                200,
                {
                    "files": [
                        {
                            "path": f["path"],
                            "uploadMode": "lfs" if lfs(f["path"]) else "regular",
                            "shouldIgnore": False,
                            "oid": identity(f["path"], there[f["path"]]) if f["path"] in there else None,
                        }
                        for f in json.loads(body)["files"]
                    ]
                },
            )

    def batch(self, body, name) -> None:
        if self.may_write(name.split("/")[0]):
            place = f"http://{self.headers['Host']}/lfs/"
            self.answer(
                200,
                {
                    "transfer": "basic",
                    "objects": [
                        {
                            "oid": o["oid"],
                            "size": o["size"],
                            "actions": {
                                "upload": {"href": place + o["oid"]},
                                "verify": {"href": place + o["oid"]},
                            },
                        }
                        for o in json.loads(body)["objects"]
                    ],
                },
            )

    def store(self, body, oid) -> None:
        self.server.stored[oid] = body
        self.answer(200 if hashlib.sha256(body).hexdigest() == oid else 400)

    def verify(self, _, oid) -> None:
        self.answer(200 if oid in self.server.stored else 404, {})

    def commit(self, body, name, revision) -> None:
        if not (self.may_write(name.split("/")[0]) and (found := self.readable(name, revision))):
            return
        files = dict(found[0]["commits"][found[1]])
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.stored[value["oid"]]
        commit = hashlib.sha1(found[1].encode() + body).hexdigest()
        found[0]["commits"][commit] = files
        found[0]["refs"][revision] = commit
        self.answer(
            200, {"commitUrl": f"http://{self.headers['Host']}/{name}/commit/{commit}", "commitOid": commit}
        )

    def tag(self, body, name, revision) -> None:
        if self.may_write(name.split("/")[0]) and (found := self.readable(name, revision)):
            tag = json.loads(body)["tag"]
            if tag in found[0]["refs"]:
                return self.answer(409, {"error": "Tag reference exists already"})
            found[0]["refs"][tag] = found[1]
            return self.answer(200, {})
        return None


ROUTES = [
    ("GET /api/whoami-v2", Hub.whoami),
    ("GET /api/models/([^/]+/[^/]+)", Hub.meta),
    ("GET /api/models/([^/]+/[^/]+)/revision/([^/]+)", Hub.meta),
    ("GET /api/models/([^/]+/[^/]+)/tree/([^/]+)/?", Hub.tree),
    ("GET /([^/]+/[^/]+)/resolve/([^/]+)/(.+)", Hub.file),
    ("POST /api/repos/create", Hub.create),
    ("POST /api/validate-yaml", Hub.yaml),
    ("POST /api/models/([^/]+/[^/]+)/preupload/([^/]+)", Hub.preupload),
    ("POST /([^/]+/[^/]+).git/info/lfs/objects/batch", Hub.batch),
    ("PUT /lfs/([0-9a-f]{64})", Hub.store),
    ("POST /lfs/([0-9a-f]{64})", Hub.verify),
    ("POST /api/models/([^/]+/[^/]+)/commit/([^/]+)", Hub.commit),
    ("POST /api/models/([^/]+/[^/]+)/tag/([^/]+)", Hub.tag),
]


def lfs(path: str) -> bool:
    return path.endswith((".safetensors", ".png"))


def identity(path: str, content: bytes) -> str:
    """What the Hub calls a file's content: sha256 in LFS, git's own for the others."""
    if lfs(path):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def told(path: str, content: bytes) -> dict:
    row = {"oid": identity(path, content), "size": len(content)}
    return row | ({"lfs": {"oid": row["oid"], "size": len(content), "pointerSize": 130}} if lfs(path) else {})


class Breaking(Quiet):
    """A proxy: the first `model.safetensors` ends in the middle, and from then on nobody answers for that file."""

    def do_GET(self) -> None:
        weights = self.path.endswith("model.safetensors") and self.command == "GET"
        if weights and self.server.broken:
            self.close_connection = True
            return
        asked = urllib.request.Request(
            self.server.upstream + self.path, method=self.command, headers=dict(self.headers)
        )
        try:
            with urllib.request.urlopen(asked) as found:
                status, headers, body = found.status, found.headers, found.read()
        except urllib.error.HTTPError as error:
            status, headers, body = error.code, error.headers, error.read()
        self.send_response(status)
        for key, value in headers.items():
            if key.lower() not in ("transfer-encoding", "connection", "content-length"):
                self.send_header(key, value)
        self.send_header("Content-Length", headers.get("Content-Length") or str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[: len(body) // 2] if weights else body)
        if weights:
            self.server.broken = self.close_connection = True

    do_HEAD = do_GET


def breaking(upstream: str) -> Server:
    """A server in front of `upstream` that is gone half-way through the weights."""
    return Server(Breaking, upstream=upstream, broken=False)
