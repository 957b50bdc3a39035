"""Small photos inside a page: each once, as a style rule, and no more than a page can carry."""

from __future__ import annotations

import base64
import io
from pathlib import Path

BUDGET = 2_500_000
"""Bytes of photos in one page, after which further ones are left out."""


class Thumbnails:
    """Gives each photo that can be read one style class; counts those that cannot.

    Attributes:
        rules: the style rules, one for each photo.
        shown: photos in the page.
        unreadable: paths of photos that are missing or broken.
        unknown: tiles of photos without a path.
        left_out: paths of photos that the page had no room for.
    """

    def __init__(self, budget: int = BUDGET) -> None:
        self.rules: list[str] = []
        self.unreadable: list[str] = []
        self.unknown = 0
        self.left_out: list[str] = []
        self._names: dict[str, str | None] = {}
        self._room = budget

    @property
    def shown(self) -> int:
        """Photos in the page."""
        return len(self.rules)

    def name(self, path: str | None, side: int) -> str | None:
        """The style class of a photo, or None for a grey tile.

        Args:
            path: of the file; None if it is not known.
            side: pixels of its longer side. A photo that is asked for again keeps the size it has.
        """
        if path is None:
            self.unknown += 1
            return None
        if path not in self._names:
            self._names[path] = self._add(path, side)
        return self._names[path]

    def _add(self, path: str, side: int) -> str | None:
        if self._room <= 0:
            self.left_out.append(path)
            return None
        data = thumbnail(path, side)
        if data is None:
            self.unreadable.append(path)
            return None
        name = f"p{len(self.rules)}"
        rule = f".{name}{{background-image:url(data:image/jpeg;base64,{base64.b64encode(data).decode('ascii')})}}"
        self.rules.append(rule)
        self._room -= len(rule)
        return name

    def counts(self) -> dict[str, int]:
        """How many photos are shown, unreadable, without a path, and left out for want of room."""
        figures = {"unreadable": len(self.unreadable), "unknown": self.unknown, "left_out": len(self.left_out)}
        return {"shown": self.shown, **figures}


def thumbnail(path: str, side: int) -> bytes | None:
    """A photo as a small JPEG, or None if it is missing or broken.

    Args:
        path: of the file.
        side: pixels of its longer side.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(Path(path)) as image:
            image.draft("RGB", (2 * side, 2 * side))  # a JPEG need not be decoded at full size
            small = ImageOps.exif_transpose(image)
            small.thumbnail((side, side))
            if small.has_transparency_data:
                small = small.convert("RGBA")
                ground = Image.new("RGBA", small.size, "white")
                small = Image.alpha_composite(ground, small)
            out = io.BytesIO()
            small.convert("RGB").save(out, format="JPEG", quality=72, optimize=True)
    # what Pillow raises for a broken file depends on how it is broken
    except (OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, TypeError, OverflowError):
        return None
    except Image.DecompressionBombError:
        return None
    return out.getvalue()
