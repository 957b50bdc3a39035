"""Galleries that are named by a URI (`scheme://...`), each opened by the back end of its scheme."""

from __future__ import annotations

from collections.abc import Callable

from .ccr_retrieval import GALLERY_KINDS, RetrievalIndex
from .indexes import BACK_ENDS as INDEXES
from .indexes import open_index

BACK_ENDS: dict[str, Callable[[str], RetrievalIndex]] = dict.fromkeys(INDEXES, open_index)
"""Scheme (in lower case) -> function that opens a URI of that scheme."""


def open_gallery(uri: str) -> RetrievalIndex:
    """Opens the index that a URI names.

    Args:
        uri: `scheme://...`; what follows the scheme is for its back end to read.

    Raises:
        FileNotFoundError: if there is no such index.
        ImportError: if its library is not installed; the message says what to install.
        OSError: if it cannot be read or reached.
        ValueError: if no back end has this scheme; the message says which galleries there are.
    """
    scheme = uri.partition("://")[0].lower()
    if scheme not in BACK_ENDS:
        schemes = ", ".join(f"{name}://" for name in sorted(BACK_ENDS)) or "none"
        raise ValueError(
            f"the gallery '{uri}' cannot be opened: there is no back end for '{scheme}://' (there are: {schemes}). "
            f"Without a URI a gallery is {GALLERY_KINDS}"
        )
    return BACK_ENDS[scheme](uri)


__all__ = ["BACK_ENDS", "open_gallery"]
