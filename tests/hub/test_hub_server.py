"""The test Hub itself, asked by the installed `huggingface_hub`."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

EVERYTHING = """
import os, warnings
from pathlib import Path
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, hf_hub_download, snapshot_download
from huggingface_hub.utils import (
    EntryNotFoundError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError,
)
api, folder = HfApi(), Path(sys.argv[1])
def error_of(function, *args, **kwargs):
    try:
        function(*args, **kwargs)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""
seen["who"] = api.whoami()["name"]
seen["url"] = str(api.create_repo("org/thing"))
seen["again"] = error_of(api.create_repo, "org/thing")
api.create_repo("org/thing", exist_ok=True)
seen["theirs"] = error_of(api.create_repo, "other/thing")
(folder / "sub" / "deep").mkdir(parents=True)
(folder / "README.md").write_text("---\\ntags: [a, b]\\npipeline_tag: x\\n---\\n# Thing\\n")
(folder / "sub" / "deep" / "a b.txt").write_text("grüße")
(folder / "empty.txt").write_text("")
(folder / "weights.safetensors").write_bytes(bytes(range(256)) * 4000)
first = api.upload_folder(repo_id="org/thing", folder_path=folder, commit_message="first").oid
seen["same"] = api.upload_folder(repo_id="org/thing", folder_path=folder).oid == first
api.create_tag("org/thing", tag="v1", revision=first)
api.create_branch("org/thing", branch="try/out", revision="v1")
operations = [CommitOperationAdd("weights.safetensors", b"new" * 1000), CommitOperationDelete("sub/")]
second = api.create_commit("org/thing", operations, commit_message="second", parent_commit=first).oid
seen["parent"] = error_of(
    api.create_commit, "org/thing", [CommitOperationAdd("x", b"x")], commit_message="late", parent_commit=first
)
seen["no_branch"] = error_of(
    api.create_commit, "org/thing", [CommitOperationAdd("x", b"x")], commit_message="x", revision="nowhere"
)
seen["files"] = {r: api.list_repo_files("org/thing", revision=r) for r in (first, "v1", "try/out", "main", second)}
seen["commits"] = [c.title for c in api.list_repo_commits("org/thing")]
refs = api.list_repo_refs("org/thing")
seen["refs"] = [sorted(r.name for r in refs.branches), [r.name for r in refs.tags]]
info = api.model_info("org/thing", files_metadata=True, revision="v1")
seen["info"] = [info.sha == first, info.pipeline_tag, info.tags, {s.rfilename: s.size for s in info.siblings}]
tree = list(api.list_repo_tree("org/thing", recursive=True, revision="v1"))
seen["tree"] = sorted(row.path for row in tree)
seen["top"] = sorted(row.path for row in api.list_repo_tree("org/thing", "sub", revision="v1"))
seen["paths"] = [p.path for p in api.get_paths_info("org/thing", ["README.md", "sub", "none"], revision="v1")]
there = snapshot_download("org/thing", revision="v1")
seen["equal"] = all(
    (Path(there) / f.relative_to(folder)).read_bytes() == f.read_bytes() for f in folder.rglob("*") if f.is_file()
)
seen["new"] = Path(hf_hub_download("org/thing", "weights.safetensors")).read_bytes() == b"new" * 1000
seen["entry"] = error_of(hf_hub_download, "org/thing", "none.txt")
seen["revision"] = error_of(hf_hub_download, "org/thing", "README.md", revision="none")
seen["repo"] = error_of(hf_hub_download, "org/none", "README.md")
api.create_repo("org/secret", private=True)
api.upload_file(repo_id="org/secret", path_or_fileobj=b"secret", path_in_repo="a.txt")
seen["secret"] = Path(hf_hub_download("org/secret", "a.txt")).read_text()
seen["nobody"] = error_of(api.model_info, "org/secret", token=False)
seen["stranger"] = error_of(api.model_info, "org/secret", token=sys.argv[2])
seen["stranger_writes"] = error_of(
    api.upload_file, repo_id="org/thing", path_or_fileobj=b"x", path_in_repo="a.txt", token=sys.argv[2]
)
seen["wrong_token"] = error_of(api.whoami, token="hf_wrong")
api.create_repo("org/space", repo_type="space", space_sdk="gradio")
bad = b"---\\nsdk: nonsense\\ncolorFrom: mauve\\n---\\n"
seen["bad_card"] = error_of(
    api.upload_file, repo_id="org/space", repo_type="space", path_or_fileobj=bad, path_in_repo="README.md"
)
good = b"---\\nsdk: gradio\\n---\\n"
api.upload_file(repo_id="org/space", repo_type="space", path_or_fileobj=good, path_in_repo="README.md")
seen["space"] = api.space_info("org/space").sdk
api.delete_branch("org/thing", branch="try/out")
api.delete_tag("org/thing", tag="v1")
refs = api.list_repo_refs("org/thing")
seen["fewer"] = [[r.name for r in refs.branches], [r.name for r in refs.tags]]
api.delete_repo("org/thing")
seen["gone"] = error_of(api.model_info, "org/thing")
"""

PUSH = """
from huggingface_hub import CommitOperationAdd, HfApi
api = HfApi()
api.create_repo("org/cut", exist_ok=True)
files = {"a.safetensors": b"a" * 2_000_000, "b.safetensors": b"b" * 2_000_000, "config.json": b"{}"}
operations = [CommitOperationAdd(name, content) for name, content in files.items()]
seen["sha"] = api.create_commit("org/cut", operations, commit_message="whole").oid
"""


def files_of(hub, name: str) -> dict[str, int]:
    """The files of a repository's main branch with their sizes."""
    repository = hub.store.repository("model", name)
    tree = repository.commit(repository.resolve("main"))["tree"]
    return {path: entry["size"] for path, entry in tree.items() if path != ".gitattributes"}


def test_everything_that_the_client_asks(start_hub, client, home, tmp_path):
    with start_hub(tmp_path / "hub", page=2, part_size=300_000) as hub:
        (tmp_path / "files").mkdir()
        seen = client(EVERYTHING, hub.environment(home), tmp_path / "files", hub.stranger)
        parts = [path for method, path in hub.requests if method == "PUT" and "/storage/" in path]
    assert seen["who"] == "tester" and seen["url"].endswith("/org/thing")
    assert "409" in seen["again"] and "403" in seen["theirs"]
    first = [".gitattributes", "README.md", "empty.txt", "sub/deep/a b.txt", "weights.safetensors"]
    second = [name for name in first if not name.startswith("sub/")]
    assert [sorted(files) for files in seen["files"].values()] == [first, first, first, second, second]
    assert seen["same"], "the same files again are no commit"
    assert seen["commits"] == ["second", "first", "initial commit"]
    assert "412" in seen["parent"] and seen["no_branch"].startswith("RevisionNotFoundError")
    assert seen["refs"] == [["main", "try/out"], ["v1"]] and seen["fewer"] == [["main"], []]
    size = {".gitattributes": seen["info"][3].pop(".gitattributes")}
    assert size[".gitattributes"] > 0
    sizes = {"README.md": 45, "empty.txt": 0, "sub/deep/a b.txt": 7, "weights.safetensors": 1_024_000}
    assert seen["info"] == [True, "x", ["a", "b"], sizes]
    assert seen["tree"] == sorted([*first, "sub", "sub/deep"]) and seen["top"] == ["sub/deep"]
    assert seen["paths"] == ["README.md", "sub"]
    assert seen["equal"] and seen["new"] and seen["secret"] == "secret"
    assert len([path for path in parts if path.rpartition(".")[2] in "1234"]) == 4, "1 024 000 bytes in 4 parts"
    assert seen["entry"].startswith("RemoteEntryNotFoundError")
    assert seen["revision"].startswith("RevisionNotFoundError")
    for name in ("repo", "nobody", "stranger", "gone"):
        assert seen[name].startswith("RepositoryNotFoundError"), seen[name]
    assert "403" in seen["stranger_writes"] and "nvalid" in seen["wrong_token"]
    assert '"sdk" must be one of' in seen["bad_card"] and '"colorFrom"' in seen["bad_card"]
    assert seen["space"] == "gradio"


def test_ranges_and_signed_addresses(hub):
    repository = hub.store.create("model", "org/ranges", private=False)
    oid = hub.store.objects.add(bytes(range(100)), hashlib.sha256(bytes(range(100))).hexdigest())
    line = {"key": "lfsFile", "value": {"path": "x.bin", "oid": oid, "size": 100}}
    sha = repository.add_commit("main", [line], {"summary": "x"})
    url = f"{hub.endpoint}/org/ranges/resolve/main/x.bin"

    def get(url, span=None):
        request = urllib.request.Request(url, headers={"Range": f"bytes={span}"} if span else {})
        with urllib.request.urlopen(request) as answer:
            return answer.status, answer.read(), answer.headers

    spans = {"10-19": range(10, 20), "90-": range(90, 100), "-5": range(95, 100), "0-999": range(100)}
    for span, wanted in spans.items():
        status, content, headers = get(url, span)
        assert (status, content) == (206, bytes(wanted)), span
        assert headers["Content-Range"] == f"bytes {wanted[0]}-{wanted[-1]}/100"
    with pytest.raises(urllib.error.HTTPError, match="416"):
        get(url, "100-")
    with pytest.raises(urllib.error.HTTPError, match="403"):
        get(f"{hub.storage}/storage/{oid}?signature=0")
    small = get(f"{hub.endpoint}/org/ranges/resolve/{sha}/.gitattributes")[2]
    assert (
        small["X-Repo-Commit"] == sha
        and small["ETag"].strip('"') == repository.commit(sha)["tree"][".gitattributes"]["oid"]
    )


@pytest.mark.parametrize("method, path, how", [("POST", "/commit/main", "cut"), ("POST", "/commit/main", "500")])
def test_broken_commit_leaves_nothing(hub, client, home, method, path, how):
    hub.fail(method, f"org/cut{path}", how)
    words = client(PUSH, hub.environment(home), error=True)
    assert "500" in words if how == "500" else "RemoteProtocolError" in words or "WriteError" in words
    assert files_of(hub, "org/cut") == {}
    hub.failures.clear()


@pytest.mark.slow
def test_killed_in_the_middle_of_an_upload(hub, client, home):
    code = PUSH.replace("org/cut", "org/killed").replace("* 2_000_000", "* 2_000_001")  # contents not there yet
    failure = hub.fail("PUT", "/storage/", "hang", number=2, times=99)
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", f"seen = {{}}\n{code}"], env=hub.environment(home), stderr=subprocess.DEVNULL
    )
    try:
        assert failure.happened.wait(60)
    finally:
        process.kill()
        process.wait()
    hub.failures.clear()
    assert files_of(hub, "org/killed") == {}
    seen = client(code, hub.environment(home))
    sizes = {"a.safetensors": 2_000_001, "b.safetensors": 2_000_001, "config.json": 2}
    assert files_of(hub, "org/killed") == sizes
    repository = hub.store.repository("model", "org/killed")
    assert [row["title"] for _, row in repository.history(seen["sha"])] == ["whole", "initial commit"]


@pytest.mark.slow
def test_one_error_of_the_storage_is_tried_again(hub, client, home):
    failure = hub.fail("PUT", "/storage/", "503")
    code = PUSH.replace("org/cut", "org/retried").replace("* 2_000_000", "* 2_000_002")
    client(code, hub.environment(home))
    hub.failures.clear()
    assert failure.happened.is_set()
    assert set(files_of(hub, "org/retried")) == {"a.safetensors", "b.safetensors", "config.json"}


@pytest.mark.slow
def test_lost_answer_is_a_whole_commit(hub, client, home):
    hub.fail("POST", "org/lost/commit/main", "lost")
    client(PUSH.replace("org/cut", "org/lost"), hub.environment(home), error=True)
    hub.failures.clear()
    assert set(files_of(hub, "org/lost")) == {"a.safetensors", "b.safetensors", "config.json"}


@pytest.mark.slow
def test_by_hand(tmp_path):
    script = Path(__file__).with_name("hub_server.py")
    process = subprocess.Popen([sys.executable, script, tmp_path], stdout=subprocess.PIPE, text=True)
    try:
        words = process.stdout.readline()
        assert words.startswith("export HF_ENDPOINT=http://127.0.0.1:") and "HF_TOKEN=hf_" in words
        endpoint = words.split("HF_ENDPOINT=")[1].split()[0]
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(f"{endpoint}/api/models/org/none")
    finally:
        process.terminate()
        process.wait(10)
