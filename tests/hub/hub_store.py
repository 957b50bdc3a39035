"""Repositories on disk as the test Hub keeps them: immutable commits, branches and tags, contents by their hash.

`objects/` holds contents once each (git's blob hash for small files, SHA-256 for large ones), a repository's folder
holds `repo.json`, `commits/SHA.json` (the whole tree of that commit) and `refs.json`. The last thing that a commit
writes is `refs.json`, by renaming a complete file over it: whatever breaks before leaves the branch as it was.
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import hashlib
import json
import os
import re
import shutil
import tempfile
import threading
from pathlib import Path, PurePosixPath

KINDS = ("model", "dataset", "space")
NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}")
OID = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
SHA = re.compile(r"[0-9a-f]{40}")
REF = re.compile(r"(?!.*\.\.)[\w][\w./-]*")
LARGE = ("safetensors", "bin", "parquet", "arrow", "onnx", "model", "zip", "tar", "png", "jpg", "webp", "npy")
ATTRIBUTES = "".join(f"*.{ending} filter=lfs diff=lfs merge=lfs -text\n" for ending in LARGE)
REGULAR_LIMIT = 10 * 2**20  # bytes


class HubError(Exception):
    """What a request ends in: a status, the code that clients read, and words."""

    def __init__(self, status: int, words: str, code: str | None = None, commit: str | None = None):
        super().__init__(words)
        self.status, self.words, self.code, self.commit = status, words, code, commit


def git_hash(content: bytes) -> str:
    """The name that git gives a file with this content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file that is either there as a whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".part-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise


def safe_path(path: str) -> str:
    """A path inside a repository, or an error."""
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts or ".git" in parts or "\0" in path or "\\" in path:
        raise HubError(400, f"{path!r} is no path inside a repository")
    return "/".join(parts)


class Objects:
    """Contents by hash."""

    def __init__(self, folder: Path):
        self.folder = folder

    def path(self, oid: str) -> Path:
        """Where this content is or would be."""
        if not OID.fullmatch(oid):
            raise HubError(400, f"{oid!r} is no object id")
        return self.folder / oid[:2] / oid

    def add(self, content: bytes, oid: str | None = None) -> str:
        """Keeps a content: a large one under the SHA-256 that it must have, a small one under git's hash."""
        found = git_hash(content) if oid is None else hashlib.sha256(content).hexdigest()
        if oid not in (None, found):
            raise HubError(400, f"the content of {oid} arrived with the hash {found}")
        if not self.path(found).exists():
            write_whole(self.path(found), content)
        return found

    def __contains__(self, oid: str) -> bool:
        return self.path(oid).is_file()


class Repository:
    """One model, data set or Space."""

    def __init__(self, store: Store, kind: str, name: str):
        self.store, self.kind, self.name = store, kind, name
        self.folder = store.folder / f"{kind}s" / name

    @property
    def facts(self) -> dict:
        """What `create` was told: private, sdk, created."""
        return json.loads((self.folder / "repo.json").read_text())

    @property
    def refs(self) -> dict[str, dict[str, str]]:
        """`branches` and `tags`: the commit of each."""
        return json.loads((self.folder / "refs.json").read_text())

    def create(self, **facts) -> None:
        """An empty repository: one commit with `.gitattributes`."""
        write_whole(self.folder / "repo.json", json.dumps({**facts, "created": now()}).encode())
        entry = self.store.entry(ATTRIBUTES.encode())
        self._point("branches", "main", self._write_commit({".gitattributes": entry}, None, "initial commit"))

    def change(self, **facts) -> None:
        """Other facts, such as `private`."""
        write_whole(self.folder / "repo.json", json.dumps({**self.facts, **facts}).encode())

    def resolve(self, revision: str) -> str:
        """The commit that a branch, a tag or a hash (whole or its start) names."""
        refs = self.refs
        for group in ("branches", "tags"):
            if revision in refs[group]:
                return refs[group][revision]
        if re.fullmatch(r"[0-9a-f]{7,40}", revision):
            found = [file.stem for file in (self.folder / "commits").glob(f"{revision}*.json")]
            if len(found) == 1:
                return found[0]
        raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def commit(self, sha: str) -> dict:
        """A commit: `tree` {path: {"oid", "size", "lfs"}}, `parent`, `title`, `message`, `date`."""
        return json.loads((self.folder / "commits" / f"{sha}.json").read_text())

    def history(self, sha: str | None) -> list[tuple[str, dict]]:
        """A commit and those before it, newest first."""
        rows = []
        while sha is not None:
            rows.append((sha, self.commit(sha)))
            sha = rows[-1][1]["parent"]
        return rows

    def entry(self, revision: str, path: str) -> tuple[str, dict]:
        """The commit, and the entry of one file in it."""
        sha = self.resolve(revision)
        tree = self.commit(sha)["tree"]
        if path not in tree:
            raise HubError(404, f"Entry not found: {path}", "EntryNotFound", sha)
        return sha, tree[path]

    def content(self, entry: dict) -> bytes:
        """The bytes of an entry."""
        return self.store.objects.path(entry["oid"]).read_bytes()

    def add_commit(self, branch: str, operations: list[dict], header: dict) -> str:
        """Applies a whole commit or nothing. `operations` are the lines that a client sends."""
        with self.store.lock:
            if branch not in self.refs["branches"]:
                self.resolve(branch)  # says that it is not there
                raise HubError(400, f"{branch} is no branch: a commit can only go to a branch")
            parent = self.refs["branches"][branch]
            wanted = header.get("parentCommit")
            if wanted and not parent.startswith(wanted):
                raise HubError(412, f"A commit has happened since: {branch} is at {parent}, not at {wanted}")
            tree = dict(self.commit(parent)["tree"])
            for operation in operations:
                self._apply(tree, operation["key"], operation["value"])
            sha = self._write_commit(tree, parent, header["summary"], header.get("description", ""))
            self._point("branches", branch, sha)
            return sha

    def _apply(self, tree: dict, key: str, value: dict) -> None:
        path = safe_path(value["path"])
        if key == "file":
            tree[path] = self.store.entry(base64.b64decode(value["content"], validate=True))
        elif key == "lfsFile":
            oid = value["oid"]
            if oid not in self.store.objects:
                raise HubError(400, f"LFS pointer of {path} points to {oid}, which was never uploaded")
            size = self.store.objects.path(oid).stat().st_size
            if value.get("size", size) != size:
                raise HubError(400, f"{path} is {size} bytes, not {value['size']}")
            tree[path] = {"oid": oid, "size": size, "lfs": True}
        elif key in ("deletedFile", "deletedFolder"):
            gone = [p for p in tree if p == path or (key == "deletedFolder" and p.startswith(f"{path}/"))]
            if not gone:
                raise HubError(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
            for one in gone:
                del tree[one]
        else:
            raise HubError(400, f"unknown operation {key!r}")

    def _write_commit(self, tree: dict, parent: str | None, title: str, message: str = "") -> str:
        content = json.dumps(
            {"tree": tree, "parent": parent, "title": title, "message": message, "date": now()}, sort_keys=True
        ).encode()
        sha = hashlib.sha1(content).hexdigest()
        write_whole(self.folder / "commits" / f"{sha}.json", content)
        return sha

    def _point(self, group: str, name: str, sha: str | None) -> None:
        path = self.folder / "refs.json"
        refs = self.refs if path.exists() else {"branches": {}, "tags": {}}
        if sha is None:
            del refs[group][name]
        else:
            refs[group][name] = sha
        write_whole(path, json.dumps(refs).encode())

    def add_ref(self, group: str, name: str, revision: str) -> None:
        """A new branch or tag at a revision."""
        if not REF.fullmatch(name) or SHA.fullmatch(name):
            raise HubError(400, f"{name!r} is no name for a branch or tag")
        with self.store.lock:
            if name in self.refs[group]:
                raise HubError(409, f"Reference already exists: {name}")
            self._point(group, name, self.resolve(revision))

    def remove_ref(self, group: str, name: str) -> None:
        """Takes a branch or tag away; commits stay."""
        with self.store.lock:
            if name not in self.refs[group]:
                raise HubError(404, f"there is no {name}", "RevisionNotFound")
            if (group, name) == ("branches", "main"):
                raise HubError(400, "main cannot be deleted")
            self._point(group, name, None)


class Store:
    """All repositories of a Hub in one folder."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        self.objects = Objects(self.folder / "objects")
        self.lock = threading.RLock()

    def entry(self, content: bytes) -> dict:
        """Keeps a small file and gives its entry in a tree."""
        return {"oid": self.objects.add(content), "size": len(content), "lfs": False}

    def repository(self, kind: str, name: str) -> Repository | None:
        """A repository if it is there."""
        if kind not in KINDS or not all(NAME.fullmatch(part) for part in name.split("/")) or name.count("/") != 1:
            return None
        repository = Repository(self, kind, name)
        return repository if (repository.folder / "refs.json").exists() else None

    def create(self, kind: str, name: str, **facts) -> Repository:
        """A new repository; 409 if there is one."""
        if kind not in KINDS or name.count("/") != 1 or not all(NAME.fullmatch(part) for part in name.split("/")):
            raise HubError(400, f"{name!r} is no name for a {kind}")
        with self.lock:
            if self.repository(kind, name):
                raise HubError(409, f"You already created this {kind} repo: {name}")
            repository = Repository(self, kind, name)
            repository.create(**facts)
            return repository

    def delete(self, kind: str, name: str) -> None:
        """Takes a repository away."""
        with self.lock:
            shutil.rmtree(self.repository(kind, name).folder)

    def is_large(self, path: str, sample: bytes, size: int) -> bool:
        """Whether a file goes to the large storage: by its ending, its size, or because it is no text."""
        return path.rpartition(".")[2] in LARGE or size > REGULAR_LIMIT or b"\0" in sample


def now() -> str:
    """The time as the Hub writes it."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
