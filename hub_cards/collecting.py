"""Which files of a folder are published, and why the others are not."""

from __future__ import annotations

import ast
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ccrk.hub_cards.cards import CARD, SOURCES
from ccrk.hub_cards.figures import CardError
from ccrk.hub_cards.runs import EVALUATION, TRAINING_RUN, public_config
from ccrk.metrics.files import WEIGHTS

TYPES = ("model", "space", "dataset")
CONFIG, ADAPTER, TRAINING_CONFIG = "config.json", "adapter_config.json", "training_config.yaml"
INDEX = "model.safetensors.index.json"

# what models, processors and tokenizers of transformers write beside weights and code
_MODEL_FILES = re.compile(
    r"config\.json|generation_config\.json|adapter_config\.json|(pre)?processor_config\.json|tokenizer\.json"
    r"|tokenizer_config\.json|special_tokens_map\.json|added_tokens\.json|vocab\.(json|txt)|merges\.txt"
    r"|modules\.json|sentence_bert_config\.json|config_sentence_transformers\.json"
    r"|sentencepiece\.bpe\.model|spiece\.model|chat_template\.(jinja|json)|model\.safetensors\.index\.json"
    r"|(LICENSE|NOTICE)(\.\w+)?"
)
_PICKLES = (".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt", ".th", ".joblib", ".npy", ".npz")
_SECRET_NAMES = re.compile(
    r"\.env(\..+)?|\.netrc|id_(rsa|dsa|ecdsa|ed25519)|.*\.(pem|key|p12|pfx|kdbx|jks)"
    r"|(.*[_.-])?(token|secret|credential)s?(\.(json|txt|ya?ml|toml|ini))?",
    re.IGNORECASE,
)
_SECRETS = re.compile(
    r"hf_[A-Za-z0-9]{30,}|-----BEGIN [A-Z ]*PRIVATE KEY-----|\bAKIA[0-9A-Z]{16}\b|\bgh[pousr]_[A-Za-z0-9]{36}\b"
)
_TEXTS = (
    ".json", ".yaml", ".yml", ".md", ".py", ".txt", ".toml", ".cfg", ".ini", ".csv", ".jsonl", ".html", ".js",
    ".jinja",
)  # fmt: skip
_LEFT = {
    EVALUATION: "holds captions and image ids; its figures are in results/",
    TRAINING_RUN: "its facts are in results/, without paths",
    "training_summary.md": "may name paths; its facts are in results/",
    "skipped.json": "names records of the data",
    "training_log.jsonl": "a log",
    "report.json": "holds captions and image ids; its figures are in results/",
}


@dataclass
class Entry:
    """A file that is published.

    Attributes:
        path: in the repository.
        source: the file on this machine, or its content where that is another one.
        note: how it differs from the file in the folder.
    """

    path: str
    source: Path | bytes
    note: str = ""

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.source) if isinstance(self.source, bytes) else self.source.stat().st_size

    def read(self) -> bytes:
        """The content; for files that are not large."""
        return self.source if isinstance(self.source, bytes) else self.source.read_bytes()


@dataclass
class Collection:
    """What is published of a folder, and what is not.

    Attributes:
        entries: by path.
        left_out: (path, why).
    """

    entries: dict[str, Entry] = field(default_factory=dict)
    left_out: list[tuple[str, str]] = field(default_factory=list)

    def replace(self, files: Mapping[str, bytes], note: str = "") -> None:
        """Puts content in the place of files."""
        for path, content in files.items():
            self.entries[path] = Entry(path, content, note)
        self.left_out = [(path, why) for path, why in self.left_out if path not in files]


def repository_type(folder: Path) -> str:
    """What a folder is: `model` with a configuration, `space` or `dataset` by the metadata of its card.

    Raises:
        CardError: if it cannot be told.
    """
    if (folder / CONFIG).is_file() or (folder / ADAPTER).is_file():
        return "model"
    data = card_metadata(folder)
    if "sdk" in data or is_metric(folder):
        return "space"
    if "size_categories" in data or "pretty_name" in data or (folder / SOURCES).is_file():
        return "dataset"
    raise CardError(
        f"'{folder}' is no model (there is no {CONFIG} or {ADAPTER}), and its {CARD} does not say whether it is a "
        "Space or a data set: name it with --type"
    )


def is_metric(folder: Path) -> bool:
    """Whether a folder is a module of `evaluate`: a file of its name, and a card with the tag `evaluate`."""
    tags = card_metadata(folder).get("tags") or []
    return "evaluate" in tags and any(folder.glob("*.py"))


def card_metadata(folder: Path) -> dict[str, Any]:
    """The metadata on top of a folder's card; empty where there is none that can be read."""
    import yaml

    try:
        text = (folder / CARD).read_text(encoding="utf-8")
        match = re.match(r"---\n(.*?)\n---\n", text, flags=re.DOTALL)
        data = yaml.safe_load(match[1]) if match else {}
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return data if isinstance(data, dict) else {}


def collect(folder: Path, kind: str) -> Collection:
    """The files of a folder that belong into a repository. The card of a model is not among them.

    Raises:
        CardError: for a folder that is half made, or a file that looks like a secret.
        OSError: if it cannot be read.
    """
    found = Collection()
    weights = _weight_files(folder, found) if kind == "model" else set()
    code = code_files(folder) if kind == "model" else set()
    for path in _walk(folder, found, deep=kind != "model"):
        name = path.relative_to(folder).as_posix()
        why = _left_out(folder, path, name, kind)
        if why is None and kind == "model":
            why = None if name in weights or name in code or _MODEL_FILES.fullmatch(name) else _no_part(name)
        if why is None:
            found.entries[name] = Entry(name, path)
        elif why:
            found.left_out.append((name, why))
    if kind == "model" and (folder / TRAINING_CONFIG).is_file():
        text = (folder / TRAINING_CONFIG).read_text(encoding="utf-8")
        clean = public_config(text)
        found.replace({TRAINING_CONFIG: clean.encode()}, "paths replaced by names" if clean != text else "")
    found.left_out.sort()
    return found


def _walk(folder: Path, found: Collection, deep: bool) -> Iterator[Path]:
    """Files in order; folders that are left out as a whole are noted."""
    for path in sorted(folder.iterdir()):
        name = path.name
        if path.is_symlink() and not path.resolve().is_relative_to(folder.resolve()):
            found.left_out.append((name, "a link out of the folder"))
        elif path.is_dir():
            inside = _of_folder(name) if not deep else _hidden(name)
            if inside:
                found.left_out.append((f"{name}/", inside))
            elif deep:
                yield from (p for p in sorted(path.rglob("*")) if p.is_file() and not _any_hidden(p, folder))
        else:
            yield path


def _of_folder(name: str) -> str:
    if name in ("results", "assets", ".eval_results"):
        return ""  # of the card, which comes by itself
    if re.fullmatch(r"checkpoint-\d+", name) or name == "incomplete":
        return "a checkpoint with the state of the optimizer"
    return _hidden(name) or "no part of a model"


def _hidden(name: str) -> str:
    if name in ("__pycache__", "node_modules"):
        return "a cache"
    return "hidden" if name.startswith(".") else ""


def _any_hidden(path: Path, folder: Path) -> bool:
    return any(_hidden(part) for part in path.relative_to(folder).parts)


def _left_out(folder: Path, path: Path, name: str, kind: str) -> str | None:
    """Why a file is not published; an empty text for the card of a model, which comes by itself."""
    if kind == "model" and name in (CARD, SOURCES):
        return ""
    if kind == "model" and name == ADAPTER and (folder / CONFIG).is_file():
        return "of adapters, beside a whole model: loaders would take the one for the other"
    if path.is_symlink() and not path.resolve().is_relative_to(folder.resolve()):
        return "a link out of the folder"
    if _hidden(path.name):
        return "hidden"
    if path.suffix.lower() in _PICKLES:
        return "may hold pickled objects, which run code when they are loaded"
    if path.suffix.lower() in (".pyc", ".lock", ".tmp"):
        return "a cache"
    return None


def _no_part(name: str) -> str:
    if name == TRAINING_CONFIG:
        return ""
    if name in _LEFT:
        return _LEFT[name]
    if WEIGHTS.fullmatch(name):
        return "weights that the index does not name"
    return "code that the model does not use" if name.endswith(".py") else "no part of a model"


# --- models ---------------------------------------------------------------------------------------------------------


def _weight_files(folder: Path, found: Collection) -> set[str]:
    """Names of the weight files that belong to the model.

    Raises:
        CardError: if there are none, or some of those that the index names are missing.
    """
    if (folder / ADAPTER).is_file() and not (folder / CONFIG).is_file():
        names = {"adapter_model.safetensors"}
    elif (folder / INDEX).is_file():
        try:
            names = set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, AttributeError) as error:
            raise CardError(f"'{folder / INDEX}' is no index of weights: {error}") from None
    else:
        names = {"model.safetensors"}
    missing = sorted(name for name in names if not WEIGHTS.fullmatch(name) or not (folder / name).is_file())
    if missing:
        others = [path.name for path in folder.glob("*.bin")] if folder.is_dir() else []
        hint = f"; '{others[0]}' is a pickle, save as safetensors" if others else ": the folder is half made"
        raise CardError(f"'{folder}' lacks the weights '{missing[0]}'{hint}")
    for name in sorted(names):
        try:
            with safe_open(folder / name, "numpy"):  # reads the header, which tells how long the file has to be
                pass
        except (SafetensorError, OSError) as error:
            raise CardError(f"'{folder / name}' is cut off, or no file of weights: {error}") from None
    return names


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CardError(f"'{path}' is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise CardError(f"'{path}' is no configuration: expected an object")
    return content


def code_files(folder: Path, config: Mapping[str, Any] | None = None) -> set[str]:
    """Python files that a model in a folder is loaded with where its package is not installed.

    Those that its configurations name (`auto_map`, `custom_pipelines`), and what these import of one another.

    Raises:
        CardError: if one is missing.
    """
    named: dict[str, str] = {}
    for name in (CONFIG, "processor_config.json", "preprocessor_config.json", "tokenizer_config.json"):
        if not (folder / name).is_file():
            continue
        content = dict(config) if config is not None and name == CONFIG else _json(folder / name)
        named |= {file: name for file in _modules(content)}
    files, waiting = set(), list(named)
    while waiting:
        file = waiting.pop()
        if file in files:
            continue
        if not (folder / file).is_file():
            raise CardError(
                f"'{folder}' lacks the code '{file}', which {named.get(file, 'another file')} names: without it the "
                "model cannot be loaded where ccrk is not installed. Save the model once more with save_pretrained"
            )
        files.add(file)
        for other in _imports(folder / file):
            named.setdefault(other, file)
            waiting.append(other)
    return files


def _modules(content: Any) -> set[str]:
    """Files of the classes that a configuration names, however deep: in `auto_map`, and as `impl` of a pipeline."""
    if not isinstance(content, Mapping):
        return set()
    found: set[str] = set()
    for key, value in content.items():
        if key == "custom_pipelines" and isinstance(value, Mapping):
            references = [task.get("impl") for task in value.values() if isinstance(task, Mapping)]
        elif key == "auto_map" and isinstance(value, Mapping):
            references = [one for entry in value.values() for one in (entry if isinstance(entry, list) else [entry])]
        else:
            found |= _modules(value)
            continue
        matches = (re.fullmatch(r"([A-Za-z_]\w*)\.[A-Za-z_]\w*", str(one)) for one in references)
        found |= {f"{match[1]}.py" for match in matches if match}
    return found


def _imports(file: Path) -> set[str]:
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except SyntaxError as error:
        raise CardError(f"'{file}' is no Python: {error}") from None
    nodes = (node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level == 1)
    return {f"{node.module.partition('.')[0]}.py" for node in nodes if node.module}


# --- checks ---------------------------------------------------------------------------------------------------------


def check_secrets(collection: Collection, folder: Path) -> list[str]:
    """Looks for what must not be published.

    Returns:
        Remarks: files that name a path of this machine.

    Raises:
        CardError: for a file whose name or content looks like a secret.
    """
    here = {str(folder.resolve()), str(Path.home())} - {"/", os.sep}
    remarks = []
    for name, entry in collection.entries.items():
        if _SECRET_NAMES.fullmatch(Path(name).name) and not _MODEL_FILES.fullmatch(name):
            raise CardError(f"'{name}' looks like a secret by its name: take it out of the folder")
        if Path(name).suffix.lower() not in _TEXTS and "." in Path(name).name or entry.size > 20 * 2**20:
            continue
        text = entry.read().decode("utf-8", "replace")
        match = _SECRETS.search(text)
        if match:
            line = text.count("\n", 0, match.start()) + 1
            raise CardError(f"'{name}', line {line}: this looks like a secret ('{match[0][:6]}...'): take it out")
        found = next((path for path in here if f"{path}/" in text), None)
        if found:
            line = text.count("\n", 0, text.index(f"{found}/")) + 1
            remarks.append(f"'{name}', line {line}, names a path of this machine ({found}/...)")
    return remarks
