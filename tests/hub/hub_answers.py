"""What the test Hub tells about repositories, files, commits and metadata, in the real one's words."""

from __future__ import annotations

import json

import yaml
from hub_store import HubError, Repository, git_hash

COLORS = ("red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray")
SDKS = ("gradio", "docker", "static", "streamlit")
POINTER = 134  # bytes of an LFS pointer


def metadata(content: str) -> dict:
    """The YAML between the first two `---` lines of a card; empty without it."""
    lines = content.lstrip("\ufeff").splitlines()
    if not lines or lines[0].strip() != "---" or "---" not in [line.strip() for line in lines[1:]]:
        return {}
    end = [line.strip() for line in lines[1:]].index("---") + 1
    found = yaml.safe_load("\n".join(lines[1:end]))
    if found is not None and not isinstance(found, dict):
        raise ValueError("metadata must be a mapping")
    return found or {}


def yaml_problems(content: str, kind: str) -> tuple[list[dict], list[dict]]:
    """Errors and warnings about a card's metadata."""
    try:
        data = metadata(content)
    except (yaml.YAMLError, ValueError) as error:
        return [{"message": f"YAML Metadata Error: {error}"}], []
    if not data:
        return [], [{"message": "empty or missing yaml metadata in repo card"}]
    problems = []
    for name in ("tags", "language", "datasets", "models"):
        values = data.get(name)
        if values is not None and not (
            isinstance(values, str) or (isinstance(values, list) and all(isinstance(v, str) for v in values))
        ):
            problems.append(f'"{name}" must be a list of strings')
    for name in ("license", "pipeline_tag", "library_name"):
        if data.get(name) is not None and not isinstance(data[name], str):
            problems.append(f'"{name}" must be a string')
    if kind == "space":
        problems += space_problems(data)
    problems += result_problems(data.get("model-index", []))
    return [{"message": words} for words in problems], []


def space_problems(data: dict) -> list[str]:
    """What a Space must say about itself."""
    problems = [] if data.get("sdk") in SDKS else [f'"sdk" must be one of {list(SDKS)}']
    for name in ("colorFrom", "colorTo"):
        if name in data and data[name] not in COLORS:
            problems.append(f'"{name}" must be one of {list(COLORS)}')
    if len(str(data.get("short_description", ""))) > 60:
        problems.append('"short_description" length must be less than or equal to 60 characters long')
    if "sdk_version" in data and not isinstance(data["sdk_version"], str):
        problems.append('"sdk_version" must be a string')
    return problems


def result_problems(index) -> list[str]:
    """What an evaluation result must say."""
    problems = []
    for model in index:
        if not model.get("name"):
            problems.append('"model-index[0].name" is required')
        for result in model.get("results") or []:
            for part, names in (("task", ("type",)), ("dataset", ("type", "name"))):
                problems += [f'"{part}.{n}" is required' for n in names if not (result.get(part) or {}).get(n)]
            for metric in result.get("metrics") or [{}]:
                problems += [f'"metrics.{name}" is required' for name in ("type", "value") if metric.get(name) is None]
    return problems


def file_row(repository: Repository, path: str, entry: dict) -> dict:
    """A file as the tree call gives it."""
    row = {"type": "file", "path": path, "size": entry["size"], "oid": entry["oid"]}
    if entry["lfs"]:
        row["oid"] = git_hash(entry["oid"].encode())
        row["lfs"] = {"oid": entry["oid"], "size": entry["size"], "pointerSize": POINTER}
    return row


def folder_rows(repository: Repository, sha: str, path: str, recursive: bool) -> list[dict]:
    """Files and folders below a path."""
    tree = repository.commit(sha)["tree"]
    start = f"{path.strip('/')}/" if path.strip("/") else ""
    inside = {p: entry for p, entry in sorted(tree.items()) if p.startswith(start)}
    if start and not inside:
        raise HubError(404, f"{path} does not exist on {sha}", "EntryNotFound", sha)
    rows, folders = [], set()
    for found, entry in inside.items():
        parts = found[len(start) :].split("/")
        above = [start + "/".join(parts[: n + 1]) for n in range(len(parts) - 1)]
        for folder in above if recursive else above[:1]:
            if folder not in folders:
                folders.add(folder)
                rows.append({"type": "directory", "path": folder, "oid": git_hash(folder.encode()), "size": 0})
        if recursive or not above:
            rows.append(file_row(repository, found, entry))
    return rows


def commit_row(sha: str, commit: dict) -> dict:
    """A commit as the list of commits gives it."""
    shown = {"title": commit["title"], "message": commit["message"], "date": commit["date"]}
    return {"id": sha, "authors": [{"user": "tester"}], **shown}


def repository_facts(repository: Repository, revision: str, blobs: bool) -> dict:
    """A repository as the info call gives it."""
    sha = repository.resolve(revision)
    tree, facts = repository.commit(sha)["tree"], repository.facts
    siblings = []
    for path, entry in sorted(tree.items()):
        row = file_row(repository, path, entry)
        more = {"size": row["size"], "blobId": row["oid"], **({"lfs": lfs_facts(row)} if "lfs" in row else {})}
        siblings.append({"rfilename": path, **(more if blobs else {})})
    card = metadata(repository.content(tree["README.md"]).decode()) if "README.md" in tree else {}
    index = card.pop("model-index", None)
    tags = card.get("tags", [])
    return {
        "_id": git_hash(repository.name.encode()),
        "id": repository.name,
        "author": repository.name.split("/")[0],
        "sha": sha,
        "private": facts["private"],
        "gated": False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "createdAt": facts["created"],
        "lastModified": repository.commit(sha)["date"],
        "tags": [tags] if isinstance(tags, str) else tags,
        "cardData": card,
        "siblings": siblings,
        **({"model-index": index} if index else {}),
        **({"sdk": card.get("sdk") or facts["sdk"]} if repository.kind == "space" else {}),
        **(model_facts(repository, tree, card) if repository.kind == "model" else {}),
    }


def model_facts(repository: Repository, tree: dict, card: dict) -> dict:
    """What the Hub reads from a model's files."""
    found = {name: card[name] for name in ("pipeline_tag", "library_name") if name in card}
    if "config.json" in tree:
        config = json.loads(repository.content(tree["config.json"]))
        kept = ("architectures", "model_type", "auto_map", "custom_pipelines")
        found["config"] = {name: config[name] for name in kept if name in config}
    return found


def lfs_facts(row: dict) -> dict:
    """The large file's part of a sibling."""
    return {"sha256": row["lfs"]["oid"], "size": row["lfs"]["size"], "pointerSize": row["lfs"]["pointerSize"]}
