"""Batches from rows of images and captions, from files or from cached features."""

from __future__ import annotations

import random
from typing import Any

import torch

from ccrk.masking_ccrk import MaskingRules, mask_tokens
from ccrk.trainer.feature_cache import FeatureCache


def choose_captions(
    captions: list[dict[str, Any]], languages: list[str] | None, texts_per_image: int | None
) -> list[int]:
    """Which captions of an image go into a step: one in each language, or in so many languages drawn at random.

    Returns:
        Places in `captions`, in the order of languages.
    """
    by_language: dict[str, list[int]] = {}
    for place, caption in enumerate(captions):
        if languages is None or caption["language"] in languages:
            by_language.setdefault(caption["language"], []).append(place)
    tags = sorted(by_language) if languages is None else [tag for tag in languages if tag in by_language]
    if texts_per_image is not None and texts_per_image < len(tags):
        tags = [tags[i] for i in sorted(random.sample(range(len(tags)), texts_per_image))]
    return [random.choice(by_language[tag]) for tag in tags]


class CCRkDataCollator:
    """Turns rows (`image`, `image_id`, `captions`) into a training batch.

    Args:
        processor: a [`CCRkProcessor`].
        languages, texts_per_image: see `choose_captions`.
        masking: rules for masked-language modelling; without them no masked texts are made.
        cache: features of frozen towers; rows then carry their place in it under `row`.

    Returns (of a call):
        `pixel_values (B, 3, H, W)`, `input_ids (T, L)`, `attention_mask (T, L)`, `image_index (T,)`, `image_ids (B,)`
        and, with masking, `masked_input_ids (T, L)` and `mlm_labels (T, L)`. With a cache `image_hidden_states` and
        `text_hidden_states` stand in the place of `pixel_values`.

    Raises (of a call):
        ValueError: if a row lacks its image or captions, naming the row.
    """

    def __init__(
        self,
        processor,
        languages: list[str] | None = None,
        texts_per_image: int | None = None,
        masking: MaskingRules | None = None,
        cache: FeatureCache | None = None,
    ):
        self.processor = processor
        self.languages = languages
        self.texts_per_image = texts_per_image
        self.masking = masking
        self.cache = cache

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Builds a batch; see the class."""
        chosen = []
        for row in rows:
            self._check(row)
            chosen.append(choose_captions(row["captions"], self.languages, self.texts_per_image))
            if not chosen[-1]:
                wanted = f" in {', '.join(self.languages)}" if self.languages else ""
                raise ValueError(f"image '{row.get('image_id')}' has no caption{wanted}")
        batch = self._from_cache(rows, chosen) if self.cache is not None else self._from_rows(rows, chosen)
        numbers: dict[str, int] = {}
        identities = [str(row.get("image_id", place)) for place, row in enumerate(rows)]
        batch["image_ids"] = torch.tensor([numbers.setdefault(identity, len(numbers)) for identity in identities])
        if self.masking is not None:
            masked = mask_tokens(batch["input_ids"], batch["attention_mask"], self.masking)
            batch["masked_input_ids"], batch["mlm_labels"] = masked
        return batch

    @staticmethod
    def _check(row: dict[str, Any]) -> None:
        for key in ("image", "captions"):
            if row.get(key) is None and not (key == "image" and "row" in row):
                raise ValueError(
                    f"the row of image '{row.get('image_id')}' has no '{key}' (it has {', '.join(sorted(row))}); "
                    "a data set needs the columns image, image_id and captions"
                )

    def _from_rows(self, rows, chosen) -> dict[str, torch.Tensor]:
        texts = [
            [row["captions"][place]["text"] for place in places] for row, places in zip(rows, chosen, strict=True)
        ]
        return dict(
            self.processor(images=[row["image"] for row in rows], text=texts, return_tensors="pt", padding=True)
        )

    def _from_cache(self, rows, chosen) -> dict[str, torch.Tensor]:
        places = [(row["row"], place) for row, choice in zip(rows, chosen, strict=True) for place in choice]
        states = [self.cache.text_states(*place) for place in places]
        ids = [self.cache.token_ids(*place) for place in places]
        pad = torch.nn.utils.rnn.pad_sequence
        lengths = torch.tensor([len(tokens) for tokens in ids])
        input_ids = pad(ids, batch_first=True, padding_value=self.processor.tokenizer.pad_token_id)
        return {
            "image_hidden_states": torch.stack([self.cache.image_states(row["row"]) for row in rows]),
            "text_hidden_states": pad(states, batch_first=True),
            "input_ids": input_ids,
            "attention_mask": (torch.arange(input_ids.shape[1]) < lengths[:, None]).long(),
            "image_index": torch.tensor([i for i, choice in enumerate(chosen) for _ in choice]),
        }
