"""Putting a folder on the Hub: a plan that can be read, and then one commit of what it says."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi

from ccrk.hub_cards.cards import (
    CARD,
    SOURCES,
    Card,
    check_card,
    check_foreign,
    model_card,
    read_card,
    read_runs,
)
from ccrk.hub_cards.collecting import (
    ADAPTER,
    CONFIG,
    TYPES,
    Collection,
    Entry,
    _json,
    card_metadata,
    check_secrets,
    collect,
    is_metric,
    repository_type,
)
from ccrk.hub_cards.figures import CardError
from ccrk.hub_cards.model_card import CardOptions, adapter_class, leaderboard_file
from ccrk.hub_cards.runs import EVALUATION, TRAINING_RUN
from ccrk.metrics.files import weights_in

LARGEST = 50 * 10**9
"""Bytes of the largest file that the Hub takes."""

_DRAFT = re.compile(r"\[More Information Needed\]|generated automatically|generated_from_trainer")
_STALE = re.compile(r"(adapter_)?model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")
"""Weights that an earlier version of a model may have and this one has not: they are taken from the repository."""


@dataclass
class PublishOptions:
    """What is asked for.

    Attributes:
        folder: what to publish.
        repo: `org/name`.
        kind: `model`, `space` or `dataset`; seen from the folder by default.
        private: of a repository that is made.
        revision: the branch to commit to, which is made where it does not exist.
        message: of the commit.
        create_pr: propose the commit instead of making it.
        tag: name for the commit.
        new_card: make the card anew, of the run files, instead of checking the one that is there.
        evaluations: run files to make it of; by default those in the folder.
        emissions: codecarbon's file.
        card: options of the card; what is not given is taken from the card that is there.
        base_model: of adapters that were trained from a local folder.
    """

    folder: str
    repo: str
    kind: str | None = None
    private: bool = False
    revision: str | None = None
    message: str | None = None
    create_pr: bool = False
    tag: str | None = None
    new_card: bool = False
    evaluations: list[str] = field(default_factory=list)
    emissions: str | None = None
    card: dict[str, Any] = field(default_factory=dict)
    base_model: str | None = None

    def __post_init__(self) -> None:
        from huggingface_hub.utils import HFValidationError, validate_repo_id

        try:
            validate_repo_id(self.repo)
        except HFValidationError as error:
            raise ValueError(f"'{self.repo}' is no name of a repository: {error}") from None
        if "/" not in self.repo:
            raise ValueError(f"'{self.repo}' does not say whose it is; name it as org/name")
        if self.kind is not None and self.kind not in TYPES:
            raise ValueError(f"--type is '{self.kind}'; it is one of {', '.join(TYPES)}")
        if self.create_pr and (self.revision or self.tag):
            raise ValueError("--create-pr goes with neither --revision nor --tag: a proposal is of the main branch")


@dataclass
class Plan:
    """What would be published.

    Attributes:
        options: that it was made for.
        kind: of the repository.
        collection: the files.
        verdict: on the card.
        remarks: what a person should know.
        changed: paths that differ from the repository; None as long as it was not asked.
        removed: paths that are taken from it.
        exists: whether there is the repository; None as long as it was not asked.
    """

    options: PublishOptions
    kind: str
    collection: Collection
    verdict: str
    remarks: list[str] = field(default_factory=list)
    changed: list[str] | None = None
    removed: list[str] = field(default_factory=list)
    exists: bool | None = None

    @property
    def message(self) -> str:
        """Of the commit."""
        return self.options.message or f"Publish the {self.kind} with ccrk"

    @property
    def entries(self) -> list[Entry]:
        """Files by path."""
        return [self.collection.entries[path] for path in sorted(self.collection.entries)]


# --- plan ------------------------------------------------------------------------------------------------------------


def make_plan(options: PublishOptions, attach: Callable[[Path], Mapping[str, bytes]] | None = None) -> Plan:
    """Collects and checks what is published. Nothing is written, and nobody is asked.

    Args:
        options: what is asked for.
        attach: gives files that a model's folder lacks to be loaded without the package, or that differ (the
            configuration that names them); for models that are no adapters.

    Raises:
        OSError: if the folder cannot be read.
        CardError: for whatever must not be published, naming the file.
    """
    folder = Path(options.folder)
    if not folder.is_dir():
        raise CardError(f"'{folder}' is no folder" + ("" if folder.exists() else ": there is nothing of that name"))
    kind = options.kind or repository_type(folder)
    if kind == "model" and not any((folder / name).is_file() for name in (CONFIG, ADAPTER)):
        raise CardError(f"'{folder}' is no model: there is neither {CONFIG} nor {ADAPTER}; the folder is half made")
    remarks: list[str] = []
    collection = collect(folder, kind)
    if kind == "model":
        if attach is not None and (folder / CONFIG).is_file() and _lacks_pipeline(folder):
            collection.replace(attach(folder), "for those who load it without the package")
        if adapter_class(folder):
            collection.replace(_adapter_config(folder, options), "")
        card, verdict = _model_card(folder, options, remarks)
        collection.replace(card.files)
    else:
        verdict = _check_other(folder, kind, collection, remarks)
    remarks += check_secrets(collection, folder)
    for entry in collection.entries.values():
        if entry.size > LARGEST:
            raise CardError(
                f"'{entry.path}' has {_size(entry.size)}, and the Hub takes {_size(LARGEST)} at most: save in shards"
            )
    return Plan(options, kind, collection, verdict, remarks)


def _lacks_pipeline(folder: Path) -> bool:
    config = _json(folder / CONFIG)
    return config.get("model_type") == "ccrk" and not config.get("custom_pipelines")


def _adapter_config(folder: Path, options: PublishOptions) -> dict[str, bytes]:
    """The configuration of adapters; its base must be on the Hub for others to load them.

    Raises:
        CardError: if the base is a folder of this machine.
    """
    config = _json(folder / ADAPTER)
    base = options.base_model or config.get("base_model_name_or_path")
    if not base or not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", base) or Path(base).exists():
        raise CardError(
            f"the adapters in '{folder}' were trained from {repr(base) if base else 'a model without a name'}, which "
            "others cannot load: publish that model first, and name it with --base-model org/name"
        )
    if base == config.get("base_model_name_or_path"):
        return {}
    return {ADAPTER: (json.dumps({**config, "base_model_name_or_path": base}, indent=2) + "\n").encode()}


def _model_card(folder: Path, options: PublishOptions, remarks: list[str]) -> tuple[Card, str]:
    """The card that is published, and what is to be said of it."""
    readme, known = folder / CARD, (folder / SOURCES).is_file()
    anew = options.new_card or bool(options.evaluations) or not readme.is_file()
    if not anew and is_own_text(folder):
        text = readme.read_text(encoding="utf-8", errors="replace")
        try:
            check_foreign(text)
        except CardError as error:
            raise CardError(f"{error}; --new-card makes a card of the run files in its place") from None
        return Card("model", None, {CARD: text.encode()}), "written by hand; it shows no figures"
    if not anew and not known:
        anew = True
        remarks.append(f"{CARD} is a draft that was not filled in; it stays here")
    if anew:
        weights, runs = weights_in(folder), _runs(folder, options, remarks)
        before = check_options(folder) if known else {}
        made = model_card(_options(folder, options, before), read_runs(runs), weights)
        return (
            made,
            f"made of {', '.join(Path(run).name for run in runs) or 'nothing: it says that nothing was measured'}",
        )
    card = check_card(folder)
    settings = _options(folder, options, vars(card.options))
    checked = f"checked: {len(card.figures)} figures as in their sources"
    if settings == card.options and not options.emissions:
        return card, checked
    sources, documents = read_card(folder)
    if options.emissions:
        documents |= read_runs([options.emissions])
    drawn = {path: content for path, content in card.files.items() if path in sources["assets"]}
    remade = model_card(settings, documents, sources["weights"] or weights_in(folder), drawn)
    return remade, f"{checked}; then made anew for {options.repo}"


def is_own_text(folder: Path) -> bool:
    """Whether the card in a folder was written by a person, and is neither made of sources nor an empty draft."""
    readme = folder / CARD
    if not readme.is_file() or (folder / SOURCES).is_file():
        return False
    return not _DRAFT.search(readme.read_text(encoding="utf-8", errors="replace"))


def check_options(folder: Path) -> dict[str, Any]:
    """Options of the card in a folder, whether or not it still agrees with its sources."""
    try:
        options = _json(folder / SOURCES).get("options")
    except CardError:
        return {}
    return options if isinstance(options, dict) else {}


def _options(folder: Path, options: PublishOptions, before: Mapping[str, Any]) -> CardOptions:
    names = set(CardOptions.__dataclass_fields__)
    kept = {name: value for name, value in before.items() if name in names}
    given = {name: value for name, value in options.card.items() if value}
    given["texts"] = {**(kept.get("texts") or {}), **(given.get("texts") or {})}
    base = [options.base_model] if options.base_model else []
    adapter = adapter_class(folder)
    if adapter and not base and not given.get("base_model") and not kept.get("base_model"):
        base = [_json(folder / ADAPTER)["base_model_name_or_path"]]
    more = {"base_model": base} if base else {}
    named = {"name": options.repo.split("/")[1], "repo": options.repo, "adapter": adapter}
    return replace(CardOptions("model"), **{**kept, **given, **more, **named})


def _runs(folder: Path, options: PublishOptions, remarks: list[str]) -> list[str]:
    """Run files to make a card of: those named, or those in the folder that are of these weights."""
    runs = list(options.evaluations)
    training, evaluation = folder / TRAINING_RUN, folder / EVALUATION
    if training.is_file():
        runs.insert(0, str(training))
    if not options.evaluations and evaluation.is_file():
        weights = [path.stat().st_mtime for path in folder.glob("*model*.safetensors")]
        if weights and evaluation.stat().st_mtime < max(weights):
            remarks.append(
                f"{EVALUATION} is older than the weights, so the card takes no figures of it: measure again, or name "
                "it with --evaluation if it is of these weights"
            )
        else:
            runs.append(str(evaluation))
    return [*runs, *([options.emissions] if options.emissions else [])]


def _check_other(folder: Path, kind: str, collection: Collection, remarks: list[str]) -> str:
    """Checks the card of a Space or a data set.

    Raises:
        CardError: if it is missing, or lacks what the Hub needs.
    """
    if CARD not in collection.entries:
        raise CardError(f"'{folder}' has no {CARD}, with which a {kind} tells what it is")
    if (folder / SOURCES).is_file():
        return f"checked: {len(check_card(folder).figures)} figures as in their sources"
    if kind == "dataset":
        try:
            check_foreign((folder / CARD).read_text(encoding="utf-8"))
        except CardError as error:  # counts of a data set are no measurements: told, not refused
            remarks.append(str(error))
            return "written by hand; its figures have no source"
        return "written by hand; it shows no figures"
    check_space(folder, remarks)
    return "the metadata of a Space is complete"


COLORS = ("red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray")
SDKS = ("gradio", "docker", "static")


def check_space(folder: Path, remarks: list[str]) -> None:
    """Checks the metadata of a Space, or of a metric, which lives in one.

    Raises:
        CardError: naming the line that is missing or wrong.
    """
    data = card_metadata(folder)
    if not data.get("title"):
        raise CardError(f"'{folder / CARD}' has no title in its metadata")
    for name in ("colorFrom", "colorTo"):
        if data.get(name) is not None and data[name] not in COLORS:
            raise CardError(f"'{folder / CARD}': {name} is '{data[name]}'; it is one of {', '.join(COLORS)}")
    sdk = data.get("sdk")
    if sdk is None and is_metric(folder):
        remarks.append("the card names no sdk, so there is no page to try the metric on; evaluate.load works")
        return
    if sdk not in SDKS:
        raise CardError(f"'{folder / CARD}': sdk is {sdk!r}; it is one of {', '.join(SDKS)}")
    app = data.get("app_file") or {"gradio": "app.py", "static": "index.html", "docker": "Dockerfile"}[sdk]
    if not (folder / app).is_file():
        raise CardError(f"'{folder / CARD}': a Space with the sdk {sdk} starts '{app}', which is not there")


# --- the plan as text ------------------------------------------------------------------------------------------------


def _size(number: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000 or unit == "GB":
            return f"{number:,.0f} {unit}" if unit == "B" else f"{number:,.1f} {unit}"
        number /= 1000
    return ""


def plan_lines(plan: Plan) -> list[str]:
    """The plan for a person to read."""
    options, entries = plan.options, plan.entries
    width = max(len(entry.path) for entry in entries)
    new = f" (new, {'private' if options.private else 'public'})"
    known = "" if plan.exists is None else " (there already)" if plan.exists else new
    where = f"{plan.kind} {options.repo}{known}"
    branch = "a proposal (pull request)" if options.create_pr else f"branch {options.revision or 'main'}"
    lines = [f"{where}, {branch}, one commit: {plan.message}", ""]
    for entry in entries:
        state = "" if plan.changed is None else "  changed" if entry.path in plan.changed else "  as it is there"
        note = f"  ({entry.note})" if entry.note else ""
        lines.append(f"  {entry.path:<{width}}  {_size(entry.size):>10}{state}{note}")
    lines.append(f"  {len(entries)} files, {_size(sum(entry.size for entry in entries))}")
    if plan.removed:
        lines += ["", "taken from the repository:", *(f"  {path}" for path in plan.removed)]
    if plan.collection.left_out:
        lines += ["", "stays here:", *(f"  {path}: {why}" for path, why in plan.collection.left_out)]
    lines += ["", f"card: {plan.verdict}"]
    if options.tag:
        lines.append(f"tag: {options.tag}")
    return lines + [f"note: {remark}" for remark in plan.remarks]


# --- the Hub ---------------------------------------------------------------------------------------------------------


def compare(plan: Plan, api: HfApi) -> None:
    """Asks the repository what it has, and notes what would change. Nothing is written.

    Args:
        plan: to complete.
        api: an `HfApi`.

    Raises:
        OSError: if the Hub cannot be asked.
    """
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
    from huggingface_hub.hf_api import RepoFile

    where: dict[str, Any] = {
        "repo_id": plan.options.repo,
        "repo_type": plan.kind,
        "revision": plan.options.revision,
    }
    there: dict[str, Any] = {}
    try:
        info = api.repo_info(plan.options.repo, repo_type=plan.kind)
        plan.exists = True
        if plan.options.private and not info.private:
            plan.remarks.append("the repository is public already; --private is for one that is made")
        there = {file.path: file for file in api.list_repo_tree(recursive=True, **where) if isinstance(file, RepoFile)}
    except RevisionNotFoundError:
        # a branch that is made starts from the main one
        rest = {**where, "revision": None}
        there = {file.path: file for file in api.list_repo_tree(recursive=True, **rest) if isinstance(file, RepoFile)}
    except RepositoryNotFoundError:
        plan.exists = False
    plan.changed = [entry.path for entry in plan.entries if not _same(entry, there.get(entry.path))]
    if plan.kind == "model":
        stale = {path for path in there if _STALE.fullmatch(path)} | _earlier_card(plan, api, there)
        plan.removed = sorted(path for path in stale if path in there and path not in plan.collection.entries)


def _earlier_card(plan: Plan, api: HfApi, there: Mapping[str, Any]) -> set[str]:
    """Files of the card that is there, by its own list: no others are taken away."""
    if SOURCES not in there or SOURCES not in plan.collection.entries:
        return set()
    file = api.hf_hub_download(plan.options.repo, SOURCES, repo_type=plan.kind)
    try:
        sources = json.loads(Path(file).read_text(encoding="utf-8"))
        boards = (leaderboard_file(name) for name in sources["options"].get("leaderboards") or ())
        named = {*sources["results"], *sources["assets"]}
    except (ValueError, KeyError, AttributeError, TypeError):
        return set()
    return {name for name in named if re.fullmatch(r"(results|assets)/[\w.-]+", str(name))} | set(boards)


def _same(entry: Entry, file: Any) -> bool:
    """Whether the repository has the same content: by SHA-256 of large files, by git's checksum of the others."""
    if file is None or file.size != entry.size:
        return False
    if file.lfs is not None:
        expected, digest = file.lfs.sha256, hashlib.sha256()
    else:
        expected, digest = file.blob_id, hashlib.sha1(f"blob {entry.size}\0".encode(), usedforsecurity=False)
    if isinstance(entry.source, bytes):
        digest.update(entry.source)
    else:
        with open(entry.source, "rb") as content:
            while block := content.read(2**20):
                digest.update(block)
    return digest.hexdigest() == expected


def publish(plan: Plan, api: HfApi) -> str | None:
    """Makes the repository and the branch where they do not exist, and commits what changed, in one commit.

    Args:
        plan: compared.
        api: an `HfApi`.

    Returns:
        The address of the commit or of the proposal; None where nothing changed and no commit was made.

    Raises:
        OSError: if the Hub refuses; nothing is half there then, for files become visible with the commit.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    options = plan.options
    where: dict[str, Any] = {"repo_id": options.repo, "repo_type": plan.kind}
    if not plan.exists:
        sdk = card_metadata(Path(options.folder)).get("sdk") or "static" if plan.kind == "space" else None
        api.create_repo(**where, private=options.private, exist_ok=True, space_sdk=sdk)
    if options.revision and options.revision != "main":
        api.create_branch(**where, branch=options.revision, exist_ok=True)
    url = None
    if plan.changed or plan.removed:
        changed = [entry for entry in plan.entries if plan.changed is None or entry.path in plan.changed]
        operations: list[Any] = [CommitOperationAdd(entry.path, entry.source) for entry in changed]
        operations += [CommitOperationDelete(path) for path in plan.removed]
        more = {"commit_message": plan.message, "revision": options.revision, "create_pr": options.create_pr or None}
        done = api.create_commit(operations=operations, **{**where, **more})
        url = done.pr_url if options.create_pr else done.commit_url
    if options.tag:
        api.create_tag(**where, tag=options.tag, revision=options.revision)
    return url


def is_hub_error(error: Exception) -> bool:
    """Whether an error is the Hub's or the network's, which `explain` puts into words."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    return isinstance(error, (HfHubHTTPError, LocalTokenNotFoundError, httpx2.HTTPError, ConnectionError))


def explain(error: Exception, options: PublishOptions) -> str:
    """What went wrong with the Hub, in words, without any header or token."""
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, RepositoryNotFoundError

    login = "log in with `hf auth login`, or put a token with the right to write into HF_TOKEN"
    if isinstance(error, LocalTokenNotFoundError):
        return f"you are not logged in: {login}"
    if isinstance(error, HfHubHTTPError):
        status = getattr(error.response, "status_code", 0)
        said = f" (the Hub says: {error.server_message})" if error.server_message else ""
        if status == 403:
            return f"you have no right to write to '{options.repo}'{said}: {login}, or take a name of your own"
        if status == 401:
            return f"the Hub does not know you{said}: {login}"
        if isinstance(error, RepositoryNotFoundError):
            return f"there is no repository '{options.repo}', or it is not yours to see: {login}"
        return f"the Hub refused (status {status}){said}" if status else str(error)
    return f"the Hub cannot be reached ({type(error).__name__}: {error})"
