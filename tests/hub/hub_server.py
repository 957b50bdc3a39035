"""A small Hub on this machine: what `huggingface_hub` asks of the real one for pushing and loading, over HTTP.

`with running(folder) as hub:` serves until the block ends; `hub.environment(home)` is what a client process needs,
since clients read HF_ENDPOINT when they are imported. `hub.fail(...)` breaks a request on purpose. By hand:
`python tests/hub/hub_server.py FOLDER [--port 8765]`. Large files travel as on the real Hub: the LFS batch call gives
signed addresses on another host (`localhost` here), where no token is sent.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import hashlib
import hmac
import json
import os
import re
import secrets
import sys
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlsplit

sys.path.append(str(Path(__file__).resolve().parent))

from hub_answers import commit_row, file_row, folder_rows, repository_facts, yaml_problems  # noqa: E402
from hub_store import HubError, Repository, Store, git_hash, safe_path  # noqa: E402

PREFIX = {"": "model", "datasets": "dataset", "spaces": "space"}
API = re.compile(r"/api/(model|dataset|space)s/([^/]+/[^/]+)(?:/([a-z-]+)(?:/(.*))?)?")
FILE = re.compile(r"/(?:(datasets|spaces)/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
LARGE = re.compile(r"/(?:(datasets|spaces)/)?([^/]+/[^/]+)\.git/info/lfs/(objects/batch|verify)")


@dataclass
class Failure:
    """One request that is to go wrong; see `Hub.fail`."""

    method: str
    path: re.Pattern
    how: str
    number: int = 1
    times: int = 1
    seen: int = 0
    happened: threading.Event = field(default_factory=threading.Event)


class Hub:
    """A running Hub: `endpoint`, `token`, its `store`, and what it was asked (`requests`: method and path)."""

    def __init__(self, folder: Path, port: int = 0, page: int = 1000, part_size: int | None = None):
        self.store, self.page, self.part_size = Store(folder), page, part_size
        self.token, self.stranger = f"hf_{secrets.token_hex(17)}", f"hf_{secrets.token_hex(17)}"
        self.users = {self.token: ("tester", ["org"]), self.stranger: ("stranger", [])}
        self.requests: list[tuple[str, str]] = []
        self.failures: list[Failure] = []
        self.secret, self.released = secrets.token_bytes(16), threading.Event()
        self.server = ThreadingHTTPServer(("127.0.0.1", port), type("Handler", (Handler,), {"hub": self}))
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self.storage = f"http://localhost:{self.port}"

    def environment(self, home: Path, token: str | None = None, **more: str) -> dict[str, str]:
        """The environment of a client process with a cache of its own; `token=""` is nobody."""
        gone = ("HF_HUB_OFFLINE", "HF_TOKEN", "HF_HOME", "HF_HUB_CACHE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
        kept = {name: value for name, value in os.environ.items() if name not in gone}
        token = self.token if token is None else token
        return {
            **kept,
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_MODULES_CACHE": str(Path(home) / "modules"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1,localhost",
            "no_proxy": "127.0.0.1,localhost",
            **({"HF_TOKEN": token} if token else {"HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"}),
            **more,
        }

    def fail(self, method: str, path: str, how: str, number: int = 1, times: int = 1) -> Failure:
        """Breaks requests on purpose.

        Args:
            method: HTTP method.
            path: A regular expression, found anywhere in the path.
            how: `"cut"` reads half of the body and closes the connection, `"hang"` reads half and waits until the
                client is gone, `"lost"` does the work and closes without an answer, a number is a status to answer.
            number: The how-manieth matching request is the first to fail, from 1.
            times: So many fail.

        Returns:
            The failure; its `happened` event is set when the first one occurred.
        """
        failure = Failure(method, re.compile(path), how, number, times)
        self.failures.append(failure)
        return failure

    def due(self, method: str, path: str) -> Failure | None:
        """The failure that this request has to suffer."""
        for failure in self.failures:
            if failure.method == method and failure.path.search(path):
                failure.seen += 1
                if failure.number <= failure.seen < failure.number + failure.times:
                    failure.happened.set()
                    return failure
        return None

    def repository(self, kind: str, name: str) -> Repository:
        """A repository that must be there."""
        repository = self.store.repository(kind, name)
        if repository is None:
            raise HubError(404, f"there is no {kind} {name}", "RepoNotFound")
        return repository

    def signature(self, words: str) -> str:
        """Proves that an address of the storage was given by this Hub."""
        return hmac.new(self.secret, words.encode(), "sha256").hexdigest()

    def signed(self, words: str) -> str:
        """An address of the storage."""
        return f"{self.storage}/storage/{words}?signature={self.signature(words)}"


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    hub: Hub
    protocol_version = "HTTP/1.1"
    timeout = 120
    disable_nagle_algorithm = True
    wbufsize = -1  # one packet for the header and the body

    def log_message(self, *args) -> None:
        """Tests are quiet."""

    def _serve(self) -> None:
        parts = urlsplit(self.path)
        self.place, self.query = parts.path, parse_qs(parts.query)
        self.hub.requests.append((self.command, unquote(self.place)))
        self.failure = self.hub.due(self.command, unquote(self.place))
        try:
            self.body = self._read_body()
            if self.failure and self.failure.how.isdigit():
                raise HubError(int(self.failure.how), "broken on purpose")
            self._route()
        except HubError as error:
            extra = {"X-Error-Code": error.code} if error.code else {}
            if error.commit:
                extra["X-Repo-Commit"] = error.commit
            self._answer({"error": error.words}, error.status, {"X-Error-Message": ascii_words(error.words), **extra})
        except (ConnectionError, TimeoutError):
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            pieces = []
            while size := int(self.rfile.readline().split(b";")[0] or b"0", 16):
                pieces.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(pieces)
        length = int(self.headers.get("Content-Length") or 0)
        if self.failure and self.failure.how in ("cut", "hang"):
            self.rfile.read(length // 2)
            if self.failure.how == "hang":
                self.hub.released.wait()
            raise ConnectionAbortedError
        body = self.rfile.read(length)
        if len(body) < length:
            raise ConnectionAbortedError
        return body

    def _answer(self, data, status: int = 200, headers: dict[str, str] | None = None) -> None:
        if self.failure and self.failure.how == "lost":
            raise ConnectionAbortedError
        content = data if isinstance(data, bytes) else json.dumps(data).encode()
        self.send_response(status)
        headers = {"Content-Type": "application/json", "Content-Length": str(len(content)), **(headers or {})}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
        self.wfile.flush()

    # who asks

    def _user(self) -> tuple[str | None, list[str]]:
        given = self.headers.get("Authorization", "")
        if not given:
            return None, []
        user = self.hub.users.get(given.removeprefix("Bearer "))
        if user is None:
            raise HubError(401, "Invalid credentials in Authorization header")
        return user

    def _reachable(self, kind: str, name: str, write: bool = False) -> Repository:
        user, organisations = self._user()
        own = name.split("/")[0] in (user, *organisations)
        repository = self.hub.store.repository(kind, name)
        if repository is None or (repository.facts["private"] and not own):
            status = 404 if user else 401  # as the real one: nobody learns whether it is there
            raise HubError(status, "Repository not found", "RepoNotFound")
        if write and not own:
            raise HubError(403 if user else 401, f"you have no right to write to {name}")
        return repository

    # what is asked

    def _route(self) -> None:
        if self.place.startswith("/storage/"):
            return self._storage(self.place.removeprefix("/storage/"))
        if self.place == "/api/whoami-v2":
            return self._who()
        if self.place in ("/api/repos/create", "/api/repos/delete"):
            return self._create_or_delete(json.loads(self.body))
        if self.place == "/api/validate-yaml":
            return self._validate(json.loads(self.body))
        if match := API.fullmatch(self.place):
            return self._api(match[1], match[2], match[3], match[4])
        if match := LARGE.fullmatch(self.place):
            return self._large(self._reachable(PREFIX[match[1] or ""], match[2], write=True), match[3])
        if match := FILE.fullmatch(self.place):
            repository = self._reachable(PREFIX[match[1] or ""], match[2])
            return self._file(repository, unquote(match[3]), unquote(match[4]))
        self._user()
        raise HubError(404, f"nothing at {self.place}", "RepoNotFound")

    def _who(self) -> None:
        user, organisations = self._user()
        if user is None:
            raise HubError(401, "Invalid username or password.")
        rows = [{"type": "org", "name": o, "fullname": o} for o in organisations]
        auth = {"type": "access_token", "accessToken": {"displayName": "test", "role": "write"}}
        self._answer({"type": "user", "id": user, "name": user, "fullname": user, "orgs": rows, "auth": auth})

    def _create_or_delete(self, asked: dict) -> None:
        user, organisations = self._user()
        owner, kind = asked.get("organization") or user, asked.get("type") or "model"
        name = f"{owner}/{asked['name']}"
        if user is None:
            raise HubError(401, "Invalid username or password.")
        if owner not in (user, *organisations):
            raise HubError(403, f"You don't have the rights to create a {kind} under the namespace {owner!r}.")
        if self.place.endswith("delete"):
            self.hub.repository(kind, name)
            self.hub.store.delete(kind, name)
            return self._answer({})
        url = f"{self.hub.endpoint}/{'' if kind == 'model' else kind + 's/'}{name}"
        private = asked.get("visibility") == "private" or asked.get("private") is True
        try:
            self.hub.store.create(kind, name, private=private, sdk=asked.get("sdk"))
        except HubError as error:
            return self._answer({"error": error.words, "url": url}, error.status)
        self._answer({"url": url, "name": name, "id": name})

    def _validate(self, asked: dict) -> None:
        self._user()
        errors, warnings = yaml_problems(asked["content"], asked["repoType"])
        self._answer({"errors": errors, "warnings": warnings}, 400 if errors else 200)

    def _api(self, kind: str, name: str, verb: str | None, rest: str | None) -> None:
        write = self.command in ("POST", "PUT", "DELETE") and verb != "paths-info"
        repository = self._reachable(kind, name, write)
        reference, _, path = (rest or "").partition("/")
        reference, path = unquote(reference), unquote(path)
        if verb in (None, "revision"):
            return self._answer(repository_facts(repository, reference or "main", "blobs" in self.query))
        action = getattr(self, f"_api_{verb.replace('-', '_')}", None)
        if action is None:
            raise HubError(404, f"this small Hub has no {verb}")
        action(repository, reference, path)

    def _api_tree(self, repository: Repository, revision: str, path: str) -> None:
        sha = repository.resolve(revision)
        rows = folder_rows(repository, sha, path, self.query.get("recursive", ["false"])[0].lower() in ("true", "1"))
        self._page(rows)

    def _api_commits(self, repository: Repository, revision: str, path: str) -> None:
        self._page([commit_row(sha, commit) for sha, commit in repository.history(repository.resolve(revision))])

    def _page(self, rows: list) -> None:
        start = int(self.query.get("cursor", ["0"])[0])
        end = start + self.hub.page
        headers = {}
        if end < len(rows):
            query = "&".join(f"{name}={quote(v[0])}" for name, v in self.query.items() if name != "cursor")
            headers["Link"] = f'<{self.hub.endpoint}{self.place}?{query}&cursor={end}>; rel="next"'
        self._answer(rows[start:end], headers=headers)

    def _api_refs(self, repository: Repository, *_) -> None:
        def rows(group: str, kind: str) -> list[dict]:
            return [
                {"name": n, "ref": f"refs/{kind}/{n}", "targetCommit": s} for n, s in repository.refs[group].items()
            ]

        found = {"branches": rows("branches", "heads"), "tags": rows("tags", "tags")}
        self._answer({**found, "converts": [], "pullRequests": []})

    def _api_paths_info(self, repository: Repository, revision: str, *_) -> None:
        sha = repository.resolve(revision)
        tree = repository.commit(sha)["tree"]
        if "json" in self.headers.get("Content-Type", ""):
            asked = json.loads(self.body)["paths"]
        else:
            asked = parse_qs(self.body.decode()).get("paths", [])
        rows = [file_row(repository, path, tree[path]) for path in asked if path in tree]
        folders = [path for path in asked if any(p.startswith(f"{path}/") for p in tree)]
        self._answer(rows + [{"type": "directory", "path": p, "oid": git_hash(p.encode())} for p in folders])

    def _api_branch(self, repository: Repository, name: str, rest: str) -> None:
        name = f"{name}/{rest}" if rest else name
        if self.command == "DELETE":
            repository.remove_ref("branches", name)
        else:
            repository.add_ref("branches", name, json.loads(self.body or b"{}").get("startingPoint") or "main")
        self._answer({})

    def _api_tag(self, repository: Repository, revision: str, *_) -> None:
        if self.command == "DELETE":
            repository.remove_ref("tags", revision)
        else:
            repository.add_ref("tags", json.loads(self.body)["tag"], revision)
        self._answer({})

    def _api_settings(self, repository: Repository, *_) -> None:
        asked = json.loads(self.body)
        if "visibility" in asked:
            repository.change(private=asked["visibility"] == "private")
        self._answer({})

    def _api_preupload(self, repository: Repository, revision: str, *_) -> None:
        tree = repository.commit(repository.resolve(revision))["tree"]
        rows = []
        for file in json.loads(self.body)["files"]:
            path = safe_path(file["path"])
            large = self.hub.store.is_large(path, base64.b64decode(file["sample"]), file["size"])
            row = {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
            rows.append({**row, "oid": tree[path]["oid"]} if path in tree else row)
        self._answer({"files": rows})

    def _api_commit(self, repository: Repository, branch: str, *_) -> None:
        if "create_pr" in self.query:
            raise HubError(400, "this small Hub has no pull requests")
        lines = [json.loads(line) for line in self.body.splitlines() if line]
        if not lines or lines[0]["key"] != "header":
            raise HubError(400, "a commit begins with its header")
        sha = repository.add_commit(branch, lines[1:], lines[0]["value"])
        url = f"{self.hub.endpoint}/{repository.name}/commit/{sha}"
        self._answer({"success": True, "commitOid": sha, "commitUrl": url, "hookOutput": ""})

    # contents

    def _file(self, repository: Repository, revision: str, path: str) -> None:
        sha, entry = repository.entry(revision, path)
        headers = {"X-Repo-Commit": sha, "ETag": f'"{entry["oid"]}"', "Accept-Ranges": "bytes"}
        if not entry["lfs"]:
            return self._content(repository.content(entry), headers)
        linked = {"X-Linked-ETag": headers["ETag"], "X-Linked-Size": str(entry["size"])}
        self._answer(b"", 302, {**headers, **linked, "Location": self.hub.signed(entry["oid"])})

    def _content(self, content: bytes, headers: dict[str, str]) -> None:
        headers = {"Content-Type": "application/octet-stream", **headers}
        if asked := re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", "")):
            first, last = asked.groups()
            start = int(first) if first else max(0, len(content) - int(last))
            end = min(int(last) + 1 if first and last else len(content), len(content))
            if start >= len(content):
                return self._answer(b"", 416, {**headers, "Content-Range": f"bytes */{len(content)}"})
            place = f"bytes {start}-{end - 1}/{len(content)}"
            return self._answer(content[start:end], 206, {**headers, "Content-Range": place})
        self._answer(content, 200, headers)

    def _large(self, repository: Repository, verb: str) -> None:
        asked = json.loads(self.body)
        if verb == "verify":
            if asked["oid"] not in self.hub.store.objects:
                raise HubError(404, f"{asked['oid']} did not arrive", "EntryNotFound")
            if self.hub.store.objects.path(asked["oid"]).stat().st_size != asked["size"]:
                raise HubError(400, f"{asked['oid']} has another size")
            return self._answer({})
        kind = "" if repository.kind == "model" else f"{repository.kind}s/"
        verify = {"href": f"{self.hub.endpoint}/{kind}{repository.name}.git/info/lfs/verify"}
        rows = []
        for item in asked["objects"]:
            row, oid, size = {"oid": item["oid"], "size": item["size"]}, item["oid"], item["size"]
            if oid not in self.hub.store.objects:
                upload = {"href": self.hub.signed(oid)}
                if self.hub.part_size and size > self.hub.part_size:
                    parts = range(1, -(-size // self.hub.part_size) + 1)
                    links = {str(number): self.hub.signed(f"{oid}.{number}") for number in parts}
                    upload["header"] = {"chunk_size": str(self.hub.part_size), **links}
                row["actions"] = {"upload": upload, "verify": verify}
            rows.append(row)
        transfer = "multipart" if any("header" in r.get("actions", {}).get("upload", {}) for r in rows) else "basic"
        self._answer({"transfer": transfer, "objects": rows}, headers={"Content-Type": "application/vnd.git-lfs+json"})

    def _storage(self, words: str) -> None:
        """The other host: whoever has a signed address may read or write that one object."""
        given = self.query.get("signature", [""])[0]
        if not hmac.compare_digest(given, self.hub.signature(words)):
            raise HubError(403, "SignatureDoesNotMatch")
        if self.headers.get("Authorization"):
            raise HubError(400, "a token was sent to the storage")
        oid, _, part = words.partition(".")
        objects = self.hub.store.objects
        if self.command in ("GET", "HEAD"):
            return self._content(objects.path(oid).read_bytes(), {"ETag": f'"{oid}"'})
        pieces = self.hub.store.folder / "parts" / oid
        if self.command == "POST":
            numbers = [row["partNumber"] for row in json.loads(self.body)["parts"]]
            objects.add(b"".join((pieces / str(number)).read_bytes() for number in numbers), oid)
        elif part:
            pieces.mkdir(parents=True, exist_ok=True)
            (pieces / part).write_bytes(self.body)
        else:
            objects.add(self.body, oid)
        self._answer(b"", headers={"ETag": f'"{hashlib.md5(self.body).hexdigest()}"'})


def ascii_words(words: str) -> str:
    """Words that a header can hold."""
    return words.encode("ascii", "replace").decode().replace("\n", " ").replace("\r", " ")


@contextlib.contextmanager
def running(folder: Path, **options):
    """A Hub that keeps its repositories in a folder and listens on a free port of this machine."""
    hub = Hub(folder, **options)
    thread = threading.Thread(target=hub.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.released.set()
        hub.server.shutdown()
        hub.server.server_close()
        thread.join(10)


def main() -> None:
    """Serves a folder until it is interrupted, and says what a client has to set."""
    parser = argparse.ArgumentParser(description="A small Hub on this machine, for trying out pushes.")
    parser.add_argument("folder", type=Path, help="where repositories are kept")
    parser.add_argument("--port", type=int, default=0, help="a free one if not given")
    options = parser.parse_args()
    with running(options.folder, port=options.port) as hub:
        print(f"export HF_ENDPOINT={hub.endpoint} HF_TOKEN={hub.token} HF_HUB_DISABLE_XET=1", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    main()
