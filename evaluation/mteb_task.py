"""Captions of one's own as a retrieval task of mteb, which any of its models can be measured on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ccrk.data.identity import image_identity
from ccrk.data.rows import CaptionDataset

try:
    from datasets import Dataset
    from mteb.abstasks.retrieval import AbsTaskRetrieval
    from mteb.abstasks.task_metadata import TaskMetadata
    from mteb.languages.iso_mappings import _hf_langs_to_iso_lang_scripts
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"tasks of mteb take {error.name}, which is not installed; try: pip install 'ccrk[mteb]'", name=error.name
    ) from error

if TYPE_CHECKING:
    from mteb.abstasks.retrieval_dataset_loaders import RetrievalSplitData

DIRECTIONS = {"t2i": "text-to-image", "i2t": "image-to-text"}
"""mteb's names of the two directions, and ours."""


class CaptionRetrieval(AbsTaskRetrieval):
    """A task over a caption set; `caption_task` makes one.

    Attributes:
        captions: the rows.
        direction: `t2i` or `i2t`.
    """

    captions: CaptionDataset
    direction: str
    data_loaded: bool

    def load_data(self, num_proc: int | None = None, **kwargs: Any) -> None:
        """Makes queries, gallery and right answers of each language."""
        if self.data_loaded:
            return
        photos = [{"image": row["image"], "image_id": row["image_id"], "captions": []} for row in self.captions.rows]
        table = CaptionDataset(photos).to_datasets()
        ids = [f"image-{row}" for row in range(len(table))]
        images = table.select_columns(["image"]).add_column("id", ids)
        (split,) = self.metadata.eval_splits
        self.dataset = {tag: {split: self._of_language(tag, images, ids)} for tag in self.hf_subsets}
        self.data_loaded = True

    def _of_language(self, tag: str, images: Dataset, ids: Sequence[str]) -> RetrievalSplitData:
        texts, text_ids = [], []
        # image id -> rows; rows of equal ids are right answers to each other's captions
        same: dict[str, list[int]] = {}
        captions: dict[str, list[str]] = {}  # image id -> ids of its captions
        for row, record in enumerate(self.captions.rows):
            same.setdefault(record["image_id"], []).append(row)
            for number, caption in enumerate(record["captions"]):
                if caption["language"] == tag:
                    texts.append(caption["text"])
                    text_ids.append(f"text-{row}-{number}")
                    captions.setdefault(record["image_id"], []).append(text_ids[-1])
        texts = Dataset.from_dict({"id": text_ids, "text": texts})
        if self.direction == "t2i":
            right = {text: {ids[row]: 1 for row in same[image]} for image, of_it in captions.items() for text in of_it}
            return {"queries": texts, "corpus": images, "relevant_docs": right, "top_ranked": None}
        described = [row for row, record in enumerate(self.captions.rows) if record["image_id"] in captions]
        right = {ids[row]: dict.fromkeys(captions[self.captions.rows[row]["image_id"]], 1) for row in described}
        return {"queries": images.select(described), "corpus": texts, "relevant_docs": right, "top_ranked": None}


def caption_task(
    dataset: CaptionDataset,
    name: str,
    direction: str = "t2i",
    *,
    languages: Sequence[str] | None = None,
    split: str = "test",
    main_score: str = "ndcg_at_10",
    description: str = "",
) -> CaptionRetrieval:
    """Makes a task of mteb from captions, with a subset for each language.

    Every caption is a query or an answer, every image is in the gallery of text-to-image retrieval, in all languages.
    `hit_rate_at_k` of its results is what this package calls recall, `ir@k` and `tr@k`: whether one right answer is
    among the first k. `recall_at_k` of mteb is the share of all right answers that is, the same thing where there is
    one.

    Args:
        dataset: rows, as every reader of `ccrk.data` gives them.
        name: of the task. Results are kept under it by mteb's cache, apart for other captions and images.
        direction: `t2i`, photos by captions, or `i2t`, captions by photos.
        languages: those to measure; all by default.
        split: what mteb calls the split.
        main_score: which score stands for the task.
        description: what the task is, for mteb's tables.

    Raises:
        ValueError: if the direction is unknown or a language has no captions.
    """
    if direction not in DIRECTIONS:
        raise ValueError(f"direction is '{direction}'; it is one of {', '.join(DIRECTIONS)}")
    there = dataset.languages
    chosen = sorted(there) if languages is None else list(dict.fromkeys(languages))
    absent = [tag for tag in chosen if tag not in there]
    if absent or not chosen:
        raise ValueError(f"{name}: no captions in {', '.join(absent) or 'any language'}; there are {', '.join(there)}")
    metadata = TaskMetadata(
        name=name,
        description=description or f"{DIRECTIONS[direction]} retrieval over {len(dataset)} images with captions.",
        dataset={"path": name, "revision": _fingerprint(dataset)},
        type="Any2AnyMultilingualRetrieval",
        category=direction,
        modalities=["text", "image"] if direction == "t2i" else ["image", "text"],
        eval_splits=[split],
        eval_langs={tag: [language_code(tag)] for tag in chosen},
        main_score=main_score,
        task_subtypes=["Image Text Retrieval"],
    )
    # mteb takes what a task is from its class
    made = {"metadata": metadata, "captions": dataset, "direction": direction, "__module__": __name__}
    return type("CaptionRetrieval", (CaptionRetrieval,), made)()


def language_code(tag: str) -> str:
    """A language tag as mteb writes it, `de` as `deu-Latn`; `und` if it does not know it."""
    codes = _hf_langs_to_iso_lang_scripts([tag.split("-")[0]])
    return codes[0] if codes else "und"


def _fingerprint(dataset: CaptionDataset) -> str:
    """A revision for captions and images, so that results kept for others are not taken for theirs."""
    digest = hashlib.sha256()
    for row in dataset.rows:
        captions = [[caption["language"], caption["text"]] for caption in row["captions"]]
        digest.update(json.dumps([row["image_id"], captions]).encode() + image_identity(row["image"]))
    return digest.hexdigest()[:40]


__all__ = ["CaptionRetrieval", "caption_task", "language_code"]
