"""What was left out of a corpus, counted by cause."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

IMAGE_MISSING = "image file missing"
IMAGE_OUTSIDE = "image path leaves the image folder"
NO_IMAGE = "record names no image"
CAPTION_EMPTY = "caption empty"
NO_LANGUAGE = "caption without language"
NO_CAPTIONS = "image without captions"
OTHER_LANGUAGE = "language not wanted"
OTHER_SPLIT = "image of another split"
NOT_JSON = "record is not JSON"
NOT_A_RECORD = "record is not of its format"
TAIL = "last batch too small"


class SkipReport(Mapping):
    """Counts by cause, with the first few examples of each.

    A read-only mapping from cause to count: `report["caption empty"]`, `dict(report)`, `report == {...}`, and an empty
    one is false. Causes are short fixed strings, those above among them; what a cause happened to is the example.

    Args:
        max_examples: examples kept for each cause.
    """

    def __init__(self, max_examples: int = 5):
        self.max_examples = max_examples
        self._counts: dict[str, int] = {}
        self._examples: dict[str, list[str]] = {}

    def __getitem__(self, cause: str) -> int:
        return self._counts[cause]

    def __iter__(self) -> Iterator[str]:
        return iter(self._counts)

    def __len__(self) -> int:
        return len(self._counts)

    def __repr__(self) -> str:
        return f"SkipReport({self.describe() or 'nothing left out'})"

    @property
    def total(self) -> int:
        """All that was left out."""
        return sum(self._counts.values())

    def examples(self, cause: str) -> list[str]:
        """The first few that were left out for a cause; none for a cause that did not occur."""
        return list(self._examples.get(cause, []))

    def add(self, cause: str, item: Any = None) -> None:
        """Counts one record, caption or image.

        Args:
            cause: why it was left out.
            item: what it was: an id, or a file and its line.
        """
        self._counts[cause] = self._counts.get(cause, 0) + 1
        if item is not None:
            examples = self._examples.setdefault(cause, [])
            if len(examples) < self.max_examples:
                examples.append(str(item))

    def merge(self, other: SkipReport) -> SkipReport:
        """Adds the counts and examples of another report to this one, and returns this one."""
        for cause, count in other._counts.items():
            self._counts[cause] = self._counts.get(cause, 0) + count
        for cause, examples in other._examples.items():
            kept = self._examples.setdefault(cause, [])
            kept += examples[: max(0, self.max_examples - len(kept))]
        return self

    def drain(self) -> SkipReport:
        """Returns what was counted as a report of its own and starts from nothing again."""
        taken = SkipReport(self.max_examples)
        taken._counts, self._counts = self._counts, {}
        taken._examples, self._examples = self._examples, {}
        return taken

    def to_dict(self) -> dict[str, Any]:
        """As plain dicts, lists, strings and numbers, for JSON."""
        examples = {cause: list(items) for cause, items in self._examples.items()}
        return {"counts": dict(self._counts), "examples": examples, "max_examples": self.max_examples}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SkipReport:
        """A report from what `to_dict` gave.

        Raises:
            ValueError: if it is something else.
        """
        try:
            report = cls(int(data["max_examples"]))
            report._counts = {str(cause): int(count) for cause, count in data["counts"].items()}
            report._examples = {str(cause): [str(i) for i in items] for cause, items in data["examples"].items()}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"this is no skip report, which has counts, examples and max_examples: {data}") from error
        return report

    def describe(self) -> str:
        """One line, `1 x caption empty, 2 x image file missing`; an empty string if nothing was left out."""
        return ", ".join(f"{count} x {cause}" for cause, count in sorted(self._counts.items()))

    def table(self) -> str:
        """A line for each cause, most frequent first: count, cause, examples."""
        lines = []
        width = max((len(cause) for cause in self), default=0)
        digits = max((len(str(count)) for count in self.values()), default=0)
        for cause, count in sorted(self._counts.items(), key=lambda item: (-item[1], item[0])):
            examples = self.examples(cause)
            shown = ", ".join(examples) + (", ..." if examples and len(examples) < count else "")
            lines.append(f"{count:>{digits}}  {cause:<{width}}  {shown}".rstrip())
        return "\n".join(lines)
