"""Pages as tests read them."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path


class Page(HTMLParser):
    """Reads a page as a browser would: elements in order, each with its attributes and the text inside it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None], list[str]]] = []
        self._open: list[int] = []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        assert not self._open, "an element was left open"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs), []))
        if tag != "meta":
            self._open.append(len(self.elements) - 1)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs), []))

    def handle_endtag(self, tag: str) -> None:
        assert self.elements[self._open.pop()][0] == tag

    def handle_data(self, data: str) -> None:
        for place in self._open:
            self.elements[place][2].append(data)

    def with_class(self, name: str) -> list[tuple[dict[str, str | None], str]]:
        return [
            (attributes, "".join(text).replace("\N{NO-BREAK SPACE}", " "))
            for _, attributes, text in self.elements
            if name in (attributes.get("class") or "").split()
        ]

    def texts(self, tag: str) -> list[str]:
        return ["".join(text) for name, _, text in self.elements if name == tag]

    def ids(self) -> list[str]:
        return [attributes["id"] for _, attributes, _ in self.elements if attributes.get("id")]
