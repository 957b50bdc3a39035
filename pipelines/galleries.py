"""Galleries that are indexes, or named by the URI of one."""

from __future__ import annotations

from .ccr_retrieval import GALLERY_KINDS
from .index import VectorIndex, without_secrets
from .index_gallery import IndexGallery
from .indexes import BACK_ENDS, SCHEME, open_index


def open_gallery(gallery: str | VectorIndex) -> IndexGallery:
    """Makes a gallery of an index.

    Args:
        gallery: an open index, or the URI of one.

    Raises:
        FileNotFoundError: if there is no index of this URI.
        ImportError, OSError: as `open_index`.
        ValueError: if it names no index; the message says which galleries there are.
    """
    if not isinstance(gallery, str):
        return IndexGallery(gallery)
    scheme = SCHEME.match(gallery)
    if scheme is None or scheme[1].lower() not in BACK_ENDS:
        shown, schemes = without_secrets(gallery), ", ".join(f"{name}://" for name in sorted(BACK_ENDS))
        raise ValueError(
            f"the gallery '{shown}' cannot be opened: there is no back end for '{shown.partition(':')[0]}://' (there "
            f"are: {schemes}). Without a URI a gallery is {GALLERY_KINDS}"
        )
    return IndexGallery(open_index(gallery))


__all__ = ["open_gallery"]
