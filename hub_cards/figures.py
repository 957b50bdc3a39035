"""Figures of a card: each is looked up in a results file when the card is written, and never typed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ccrk.metrics.report_figures import language_name
from ccrk.metrics.report_plots import percent

# Around each figure while a card is being made, so that its line and column are known afterwards. Private use: no
# keyboard makes them, and `escape` takes them out of what others wrote.
_OPEN, _BETWEEN, _CLOSE = "\ue000", "\ue001", "\ue002"
_MARKED = re.compile(f"{_OPEN}(\\d+){_BETWEEN}(.*?){_CLOSE}", re.DOTALL)


class CardError(ValueError):
    """A card, or what it is to be made of, that cannot be published; the message says what and where."""


def pointer(*parts: str | int) -> str:
    """A JSON pointer (RFC 6901) of its parts."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in parts)


def look_up(document: Any, path: str) -> Any:
    """What a JSON pointer points at.

    Raises:
        CardError: if there is nothing.
    """
    value = document
    for part in path.split("/")[1:]:
        part = part.replace("~1", "/").replace("~0", "~")
        try:
            value = value[int(part)] if isinstance(value, list) else value[part]
        except (KeyError, IndexError, ValueError, TypeError):
            raise CardError(f"there is nothing at '{path}'") from None
    return value


def escape(text: Any) -> str:
    """Text that Markdown and the Hub show as it is: one line, without markup of its own."""
    line = " ".join(str(text).translate({ord(mark): None for mark in (_OPEN, _BETWEEN, _CLOSE)}).split())
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|~#{}$])", r"\\\1", line)


def named(tag: str) -> str:
    """Name and tag of a language, as Markdown."""
    name = language_name(tag)
    return escape(tag if name == tag else f"{name} ({tag})")


def _duration(seconds: float) -> str:
    if seconds < 600:
        return f"{seconds:,.0f} s"
    return f"{seconds / 60:,.0f} min" if seconds < 3 * 3600 else f"{seconds / 3600:,.1f} h"


def _share(value: float) -> str:
    return percent(value)


FORMS = {
    "percent": _share,  # a share in percent, without the sign
    "number": lambda value: f"{value:.2f}",
    "tenth": lambda value: f"{value:.1f}",
    "count": lambda value: f"{value:,}",
    "place": lambda value: f"{value:g}",
    "short": lambda value: f"{value:.4g}",
    "duration": _duration,
    "mib": lambda value: f"{value:,.0f} MiB",
    "text": escape,
    "language": lambda tag: escape(language_name(tag)),
    "languages": lambda tags: escape(", ".join(language_name(tag) for tag in tags)),
    "tags": lambda tags: escape(", ".join(tags)),
}
"""How a value becomes text; what has a name here can be used in a card."""


def render(value: Any, form: str) -> str:
    """A value as the text of a figure; a dash where there is none.

    Raises:
        CardError: if the form is unknown or the value does not have it.
    """
    if form not in FORMS:
        raise CardError(f"there is no form '{form}' of figures; it is one of {', '.join(FORMS)}")
    if value is None:
        return "\N{EN DASH}"
    try:
        return FORMS[form](value)
    except (TypeError, ValueError):
        raise CardError(f"{value!r} cannot be shown as '{form}'") from None


@dataclass
class Figure:
    """One figure of a card.

    Attributes:
        text: as it stands there.
        file: results file that it is of, `results/evaluation.json` for one.
        pointer: JSON pointer to its value in that file.
        form: of `FORMS`.
        line, column: where it stands in `README.md`, from 1; 0 in the metadata on top.
    """

    text: str
    file: str
    pointer: str
    form: str
    line: int = 0
    column: int = 0

    def to_dict(self) -> dict[str, Any]:
        """As `card_sources.json` holds it."""
        return asdict(self)


class Sources:
    """The results files of a card, and the figures that were taken from them.

    Args:
        documents: `results/NAME.json` -> what it holds.
    """

    def __init__(self, documents: Mapping[str, Any]):
        self.documents = dict(documents)
        self.taken: list[Figure] = []

    def value(self, file: str, *parts: str | int) -> Any:
        """A value for which no place on the card is recorded: to decide by, or to walk over."""
        return look_up(self._document(file), pointer(*parts))

    def _document(self, file: str) -> Any:
        if file not in self.documents:
            raise CardError(f"there is no results file '{file}'; there are {', '.join(self.documents) or 'none'}")
        return self.documents[file]

    def figure(self, form: str, file: str, *parts: str | int) -> str:
        """A figure for the text of a card, marked so that `finish` finds it.

        Raises:
            CardError: if it has no source, or not this form.
        """
        return self.at(form, file, pointer(*parts))

    def at(self, form: str, file: str, path: str) -> str:
        """The same by JSON pointer."""
        try:
            text = render(look_up(self._document(file), path), form)
        except CardError as error:
            raise CardError(f"the figure '{path}' of '{file}': {error}") from None
        self.taken.append(Figure(text, file, path, form))
        return f"{_OPEN}{len(self.taken) - 1}{_BETWEEN}{text}{_CLOSE}"

    def number(self, form: str, file: str, *parts: str | int) -> float:
        """A figure for the metadata: the number that its text shows."""
        path = pointer(*parts)
        text = render(look_up(self._document(file), path), form)
        self.taken.append(Figure(text, file, path, form))
        return float(text.replace(",", ""))

    def finish(self, marked: str) -> tuple[str, list[Figure]]:
        """The text without marks, and the figures in it, those of the metadata first."""
        text, places, end = "", {}, 0
        for match in _MARKED.finditer(marked):
            text += marked[end : match.start()]
            line = text.count("\n") + 1
            places[int(match[1])] = (line, len(text) - text.rfind("\n"))
            text += match[2]
            end = match.end()
        text += marked[end:]
        figures = []
        for number, figure in enumerate(self.taken):
            figure.line, figure.column = places.get(number, (0, 0))
            figures.append(figure)
        return text, sorted(figures, key=lambda figure: (figure.line, figure.column))


# --- text of people -------------------------------------------------------------------------------------------------

_PLACEHOLDER = re.compile(r"\{\{\s*figure\(\s*([^{}]*?)\s*\)\s*\}\}")
_ARGUMENTS = re.compile(r"""\s*(?:"([^"]*)"|'([^']*)')\s*(?:,|$)""")
_DECIMAL = re.compile(r"(?<![\w.,/-])[-+\N{MINUS SIGN}]?\d+(?:[.,]\d+)+(?![\w/]|\.\d)")
_PERCENT = re.compile(r"(?<![\w.,])\d+(?:[.,]\d+)*\s?(?:%|per ?cent\b|points?\b)")
_NUMBER = re.compile(r"(?<![\w.,/-])\d+(?:[.,]\d+)*(?![\w/])")
_WHOLE = re.compile(r"\d{1,3}(,\d{3})+")
_CODE = re.compile(r"`[^`\n]*[A-Za-z][^`\n]*`|\]\([^)\s]*\)|https?://\S+")


def typed_figures(text: str) -> list[tuple[int, str]]:
    """Figures that somebody typed: percentages, decimal numbers, and any number in a table cell.

    Not looked at: blocks of code, code within a line that has letters in it, addresses. Whole numbers in a sentence,
    such as years and counts, are no figures.

    Returns:
        Line, from 1, and figure.
    """
    found, fenced = [], False
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
            continue
        if fenced or line.startswith("    "):
            continue
        plain = _CODE.sub(" ", line)
        patterns = (_PERCENT, _DECIMAL, _NUMBER) if plain.lstrip().startswith("|") else (_PERCENT, _DECIMAL)
        hits = {match.start(): match[0].strip() for pattern in reversed(patterns) for match in pattern.finditer(plain)}
        whole = set() if plain.lstrip().startswith("|") else {p for p, text in hits.items() if _WHOLE.fullmatch(text)}
        found += [(number, hits[place]) for place in sorted(hits) if place not in whole]
    return found


def fill(text: str, sources: Sources, name: str) -> str:
    """A person's text with its placeholders filled in: `{{ figure("FILE", "/json/pointer", "form") }}`.

    Args:
        text: Markdown.
        sources: to look figures up in; `FILE` may leave `results/` out.
        name: of the text, in errors.

    Raises:
        CardError: for a figure that was typed, or a placeholder without a source.
    """
    typed = typed_figures(_PLACEHOLDER.sub(" ", text))
    if typed:
        line, figure = typed[0]
        raise CardError(
            f"{name}, line {line}: the figure '{figure}' has no source; write it as "
            '{{ figure("evaluation.json", "/results/0/recall/mean", "percent") }}, or leave it out'
        )

    def one(match: re.Match) -> str:
        given = [a or b for a, b in _ARGUMENTS.findall(match[1])]
        if len(given) not in (2, 3):
            raise CardError(f"{name}: '{match[0]}' is not of the form {{{{ figure(FILE, POINTER, FORM) }}}}")
        file, path, form = [*given, "text"][:3]
        try:
            return sources.at(form, file if file.startswith("results/") else f"results/{file}", path)
        except CardError as error:
            raise CardError(f"{name}: '{match[0]}': {error}") from None

    return _PLACEHOLDER.sub(one, text.translate({ord(mark): None for mark in (_OPEN, _BETWEEN, _CLOSE)})).strip()
