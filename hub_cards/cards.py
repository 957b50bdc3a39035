"""Cards as files: made of run files, written beside a model, and checked against their sources.

The rule is one sentence: a card is what its template makes of the results files beside it, byte for byte. What a
person adds are options and texts, kept in `card_sources.json`, in which figures are placeholders.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ccrk.hub_cards.data_card import DataCardOptions, check_facts, render_data_card
from ccrk.hub_cards.figures import CardError, Figure, typed_figures
from ccrk.hub_cards.model_card import CardOptions, RenderedCard, asset_name, documents_of, render_model_card
from ccrk.hub_cards.plots import draw_plots
from ccrk.hub_cards.runs import dumps, read_run
from ccrk.metrics.files import weights_in

CARD, SOURCES = "README.md", "card_sources.json"
FORMAT = 1
KINDS: dict[str, tuple[type, Callable[..., RenderedCard]]] = {
    "model": (CardOptions, render_model_card),
    "dataset": (DataCardOptions, render_data_card),
}


@dataclass
class Card:
    """A card and all files that belong to it.

    Attributes:
        kind: `model` or `dataset`.
        options: that it was made with.
        files: path -> content: `README.md`, `card_sources.json`, `results/*.json`, `assets/*.png`, `.eval_results/*`.
        figures: with their sources.
    """

    kind: str
    options: Any
    files: dict[str, bytes] = field(default_factory=dict)
    figures: list[Figure] = field(default_factory=list)

    def document(self, name: str) -> Any:
        """A results file of the card, read."""
        return json.loads(self.files[name])

    def write(self, folder: str | os.PathLike) -> None:
        """Writes the files, the card itself last; what an earlier card had and this one has not is removed.

        Raises:
            OSError: if one cannot be written.
        """
        folder = Path(folder)
        for path in card_files(folder):
            if path not in self.files:
                (folder / path).unlink()
        for path in sorted(self.files, key=lambda path: (path in (SOURCES, CARD), path == CARD)):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(self.files[path])


def sha256(content: bytes) -> str:
    """Checksum of a file's content."""
    return hashlib.sha256(content).hexdigest()


def version() -> str:
    """Of this package."""
    try:
        return importlib.metadata.version("ccrk")
    except importlib.metadata.PackageNotFoundError:  # from a checkout that is not installed
        return "unknown"


# --- making ---------------------------------------------------------------------------------------------------------


def read_runs(paths: Iterable[str | os.PathLike]) -> dict[str, Any]:
    """Run files, stripped, as results files of distinct names.

    Raises:
        OSError, CardError: naming the file.
    """
    documents: dict[str, Any] = {}
    for path in paths:
        stem, document = read_run(path)
        name, number = f"results/{stem}.json", 1
        while name in documents:
            number += 1
            name = f"results/{stem}-{number}.json"
        documents[name] = json.loads(dumps(document))
    return documents


def model_card(
    options: CardOptions,
    documents: Mapping[str, Any],
    weights: Mapping[str, str] | None = None,
    assets: Mapping[str, bytes] | None = None,
) -> Card:
    """The card of a model.

    Args:
        options: what a person says.
        documents: of `read_runs`; none for a card that says that nothing was measured.
        weights: of `weights_in`, which the card then is a card of.
        assets: plots that were drawn of the same documents; by default they are drawn, where matplotlib is installed.

    Raises:
        CardError: if a figure has no source, or an evaluation says that it is of other weights.
    """
    _check_measured(options, documents, weights or {})
    if assets is None:
        assets = {
            asset_name(file, number, name): content
            for file in documents_of(documents, "evaluation")
            for number, part in enumerate(documents[file]["results"])
            for name, content in draw_plots(part).items()
        }
    return _assemble("model", options, documents, assets, weights)


def _check_measured(options: CardOptions, documents: Mapping[str, Any], weights: Mapping[str, str]) -> None:
    """An evaluation that names the weights it was of is a source for no others; adapters are measured merged."""
    for file in documents_of(documents, "evaluation") if weights and not options.adapter else ():
        for part in documents[file]["results"]:
            measured = part["settings"].get("weights")
            if measured and measured != dict(weights):
                raise CardError(
                    f"the evaluation of '{file}' is of other weights than those in the folder (by their checksums): "
                    "measure these (ccrk evaluate)"
                )


def dataset_card(options: DataCardOptions, facts: Mapping[str, Any]) -> Card:
    """The card of a data set.

    Args:
        options: what a person says.
        facts: see `data_card.check_facts`.

    Raises:
        CardError: if facts are missing, or a figure has no source.
    """
    documents = {"results/data.json": json.loads(dumps({"kind": "data", **check_facts(facts)}))}
    return _assemble("dataset", options, documents, {}, None)


def _assemble(
    kind: str,
    options: Any,
    documents: Mapping[str, Any],
    assets: Mapping[str, bytes],
    weights: Mapping[str, str] | None,
) -> Card:
    rendered = KINDS[kind][1](options, documents, assets)
    contents = {name: dumps(document) for name, document in documents.items()}
    sources = {
        "format": FORMAT,
        "card": kind,
        "made_by": f"ccrk {version()}",
        "options": asdict(options),
        "weights": dict(weights or {}),
        "results": {name: sha256(content) for name, content in contents.items()},
        "assets": {name: sha256(content) for name, content in assets.items()},
        "figures": [figure.to_dict() for figure in rendered.figures],
    }
    files = {CARD: rendered.text.encode(), SOURCES: dumps(sources), **contents, **assets, **rendered.files}
    return Card(kind, options, files, rendered.figures)


# --- reading and checking -------------------------------------------------------------------------------------------


def card_files(folder: str | os.PathLike) -> list[str]:
    """Paths of the files of the card in a folder, as `card_sources.json` names them; none without it."""
    folder = Path(folder)
    try:
        sources = json.loads((folder / SOURCES).read_text(encoding="utf-8"))
        named = [*sources["results"], *sources["assets"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    entries = [path.relative_to(folder).as_posix() for path in folder.glob(".eval_results/*.yaml")]
    safe = [name for name in named if re.fullmatch(r"(results|assets)/[\w.-]+", str(name))]
    return [path for path in (CARD, SOURCES, *safe, *entries) if (folder / path).is_file() and _inside(folder, path)]


def read_card(folder: str | os.PathLike) -> tuple[dict[str, Any], dict[str, Any]]:
    """`card_sources.json` of a folder, and its results files, which are those that it names.

    Raises:
        CardError: if one is missing, broken or changed.
    """
    folder = Path(folder)
    try:
        sources = json.loads((folder / SOURCES).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CardError(f"'{folder / CARD}' has no {SOURCES} beside it, so its figures cannot be looked up") from None
    except (OSError, ValueError) as error:
        raise CardError(f"'{folder / SOURCES}' cannot be read: {error}") from None
    parts = {"options": dict, "weights": dict, "results": dict, "assets": dict, "figures": list, "made_by": str}
    known = isinstance(sources, dict) and sources.get("format") == FORMAT and sources.get("card") in KINDS
    if not known or not all(isinstance(sources.get(name), kind) for name, kind in parts.items()):
        raise CardError(f"'{folder / SOURCES}' is not of a card that this version knows (format {FORMAT})")
    documents = {}
    for name, expected in sources["results"].items():
        content = _read(folder, name, r"results/[\w.-]+\.json")
        if sha256(content) != expected:
            raise CardError(
                f"'{folder / name}' was changed after the card was made of it (its checksum is another one): "
                "measure again, or take the file back"
            )
        documents[name] = json.loads(content)
    return sources, documents


def _inside(folder: Path, name: str) -> bool:
    """Whether a file of a folder really lies in it, and is no link to somewhere else."""
    path = folder / name
    return not path.is_symlink() and path.resolve().is_relative_to(folder.resolve())


def _read(folder: Path, name: str, pattern: str) -> bytes:
    """A file of a card; a card from elsewhere may name no other."""
    if not re.fullmatch(pattern, name) or not _inside(folder, name):
        raise CardError(f"'{folder / SOURCES}' names '{name}', which is no file of a card")
    try:
        return (folder / name).read_bytes()
    except OSError as error:
        raise CardError(f"'{folder / name}', which the card is made of, cannot be read: {error.strerror}") from None


def check_card(folder: str | os.PathLike) -> Card:
    """Checks the card in a folder against its sources.

    The card is made once more, which looks every figure up, and compared byte for byte; so is the list of figures with
    their sources. Results files, plots and weights are compared by checksum.

    Returns:
        The card, made anew: the same files.

    Raises:
        CardError: naming the figure and its line, or the file, that is not as its source has it.
    """
    folder = Path(folder)
    sources, documents = read_card(folder)
    kind, render_card = KINDS[sources["card"]]
    try:
        options = kind(**sources["options"])
    except (TypeError, AttributeError) as error:
        raise CardError(f"'{folder / SOURCES}' holds options that this version does not know: {error}") from None
    text = _read(folder, CARD, "README\\.md").decode("utf-8", "replace")
    assets = {name: _read(folder, name, r"assets/[\w.-]+\.png") for name in sources["assets"]}
    for name, content in assets.items():
        if sha256(content) != sources["assets"][name]:
            raise CardError(f"'{folder / name}' was changed after the card was made: draw it anew")
    try:
        card = _assemble(sources["card"], options, documents, assets, sources["weights"])
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise CardError(f"the results files of '{folder}' do not hold what a card is made of: {error!r}") from None
    _compare(text, card.files[CARD].decode(), card.figures, sources["made_by"])
    _compare_figures(sources["figures"], card.figures)
    for name, content in card.files.items():
        if name.startswith(".eval_results/") and _read(folder, name, r"\.eval_results/[\w-]+\.yaml") != content:
            raise CardError(f"'{folder / name}' differs from what the results files give")
    _check_weights(folder, sources["weights"])
    return card


def _compare(found: str, expected: str, figures: Sequence[Figure], made_by: str) -> None:
    """Finds the first line in which a card is not what its sources give."""
    if found == expected:
        return
    here, there = found.splitlines(), expected.splitlines()
    pairs = enumerate(zip(here, there, strict=False))
    number = next((n for n, (one, other) in pairs if one != other), min(len(here), len(there)))
    line, other = (lines[number] if number < len(lines) else "" for lines in (here, there))
    strange = [token for token in re.findall(r"\d+(?:[.,]\d+)*", line) if token not in other]
    what = f"the figure '{strange[0]}' has no source" if strange else "this is not what the results files give"
    wrong = next((f for f in figures if f.line == number + 1 and not line.startswith(f.text, f.column - 1)), None)
    if wrong is not None:
        what += f"; {wrong.file}#{wrong.pointer} is '{wrong.text}'"
    hint = "" if made_by == f"ccrk {version()}" else f" (the card is of {made_by}, this is {version()}: make it anew)"
    raise CardError(
        f"{CARD}, line {number + 1}: {what}. It says '{_short(line)}', and from the results comes "
        f"'{_short(other)}'{hint}"
    )


def _compare_figures(told: Sequence[Any], figures: Sequence[Figure]) -> None:
    """The list of figures says of each where it is from, so it is checked as the card is."""
    expected = [figure.to_dict() for figure in figures]
    if told == expected:
        return
    one = next((one for one in told if one not in expected), None) or next(one for one in expected if one not in told)
    raise CardError(
        f"{SOURCES}: the figure '{one.get('text')}' ({one.get('pointer')}) is not on the card as told there"
    )


def _short(line: str) -> str:
    return line if len(line) <= 120 else line[:117] + "..."


def _check_weights(folder: Path, expected: Mapping[str, str]) -> None:
    if not expected:
        return
    found = weights_in(folder)
    if found and found != dict(expected):
        changed = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
        raise CardError(
            f"the card is of other weights: '{changed[0]}' was changed after they were measured. Measure them again "
            "(ccrk evaluate), and make a new card"
        )


def check_foreign(text: str) -> None:
    """A card that was written by hand: it may say what it likes, but show no figures.

    Raises:
        CardError: naming the first figure and its line.
    """
    body = re.sub(r"\A---\n.*?\n---\n", lambda match: "\n" * match[0].count("\n"), text, flags=re.DOTALL)
    for line, figure in typed_figures(body):
        raise CardError(f"{CARD}, line {line}: the figure '{figure}' has no source (there is no {SOURCES})")
    if re.search(r"^model-index:", text, flags=re.MULTILINE):
        raise CardError(
            f"{CARD}: the metadata has a model-index, whose figures have no source (there is no {SOURCES})"
        )
