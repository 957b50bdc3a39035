"""Batches from rows of images and captions, from files or from cached features.

Everything random about a row (its captions, its masks, its augmentation) is a function of the seed, the epoch and the
image's id, so that a row is the same whichever worker or process reads it, and in a run that was resumed.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ccrk.data.augmentation import AugmentationRules, draw_key, load_augmented, normalize
from ccrk.data.images import BrokenImageError, load_image
from ccrk.data.report import CAPTION_EMPTY, NO_CAPTIONS, NO_LANGUAGE, NOT_A_RECORD, SkipReport
from ccrk.masking_ccrk import IGNORED_LABEL, MaskingRules, mask_tokens
from ccrk.trainer.feature_cache import FeatureCache

GUIDE = "en"  # the language that guides the others, where a model's configuration asks for it


def choose_captions(
    captions: Sequence[Mapping[str, Any]],
    languages: list[str] | None,
    texts_per_image: int | None,
    *,
    language_counts: Mapping[str, int] | None = None,
    generator: random.Random | None = None,
) -> list[int]:
    """Which captions of an image go into a step: one in each language, or in so many languages drawn at random.

    Args:
        captions: of the image.
        languages: those to choose from; all by default.
        texts_per_image: how many; all by default.
        language_counts: captions of each language in the whole data; with them a language is drawn with a weight of
            one divided by its count, so that rare languages come up as often as frequent ones as far as they can.
        generator: source of randomness, the global one by default.

    Returns:
        Places in `captions`, in the order of languages.
    """
    draw = generator or random
    by_language: dict[str, list[int]] = {}
    for place, caption in enumerate(captions):
        if languages is None or caption["language"] in languages:
            by_language.setdefault(caption["language"], []).append(place)
    tags = sorted(by_language) if languages is None else [tag for tag in languages if tag in by_language]
    if texts_per_image is not None and texts_per_image < len(tags):
        if language_counts is None:
            chosen = set(draw.sample(tags, texts_per_image))
        else:
            # exponential clocks: the first few to ring are a weighted sample without replacement
            clocks = {tag: draw.expovariate(1.0) * language_counts[tag] for tag in tags}
            chosen = set(sorted(tags, key=clocks.__getitem__)[:texts_per_image])
        tags = [tag for tag in tags if tag in chosen]
    return [draw.choice(by_language[tag]) for tag in tags]


def identity_number(identity: str) -> int:
    """An int64 for an image's id, the same in every process."""
    return int.from_bytes(hashlib.blake2b(identity.encode(), digest_size=8).digest(), "big", signed=True)


def identity_of(row: Mapping[str, Any]) -> str:
    """The id of a row's image; without one, a name made of its captions, the same in every batch and process.

    Two images without an id and with the same captions count as the same image.
    """
    identity = row.get("image_id")
    if identity is not None:
        return str(identity)
    captions = hashlib.blake2b(repr(row["captions"]).encode(), digest_size=8).hexdigest()
    return f"image without id, captions {captions}"


class CCRkDataCollator:
    """Turns rows (`image`, `image_id`, `captions`) into a training batch.

    Args:
        processor: a [`CCRkProcessor`].
        languages, texts_per_image, language_counts: see `choose_captions`.
        masking: rules for masked-language modelling; without them no masked texts are made.
        cache: features of frozen towers; rows then carry their place in it under `row`.
        seed: of all that is random.
        augmentation: rules for changing photos; by default they are only resized, as in evaluation.
        source_weights: caption source -> weight of its captions as positives; 1 where a source is not named. A
            caption's own `weight` multiplies it.
        guide: say which texts are English, for `english_guidance`.
        on_broken: `"skip"` leaves out photos that cannot be read and images without a usable caption, and counts
            them; `"raise"` stops at the first.

    Returns (of a call):
        `pixel_values (B, 3, H, W)`, `input_ids (T, L)`, `attention_mask (T, L)`, `image_index (T,)`, `image_ids (B,)`,
        `draw_keys (B,)`, `text_weights (T,)` and, with masking, `masked_input_ids (T, L)` and `mlm_labels (T, L)`.
        From a cache come `image_hidden_states` in the place of `pixel_values`, and `text_hidden_states`. Not for the
        model: `row_ids`, the ids of the images, and `skipped`, a `SkipReport`. If every row had to be left out, these
        two are all there is.

    Raises (of a call):
        ValueError: if a row lacks the columns image or captions or has them in another form, naming the row; with
            `on_broken="raise"` whatever is wrong with one.
    """

    def __init__(
        self,
        processor,
        languages: list[str] | None = None,
        texts_per_image: int | None = None,
        masking: MaskingRules | None = None,
        cache: FeatureCache | None = None,
        *,
        seed: int = 0,
        augmentation: AugmentationRules | None = None,
        language_counts: Mapping[str, int] | None = None,
        source_weights: Mapping[str, float] | None = None,
        guide: bool = False,
        on_broken: str = "skip",
    ):
        if on_broken not in ("skip", "raise"):
            raise ValueError(f"on_broken is '{on_broken}'; it is 'skip' or 'raise'")
        self.processor = processor
        self.languages = languages
        self.texts_per_image = texts_per_image
        self.masking = masking
        self.cache = cache
        self.seed = seed
        self.augmentation = augmentation
        self.language_counts = language_counts
        self.source_weights = dict(source_weights or {})
        self.guide = guide
        self.on_broken = on_broken

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Builds a batch; see the class."""
        skipped = SkipReport()
        before = getattr(rows, "skipped", None)
        if isinstance(before, SkipReport):
            skipped.merge(before)
        usable = []
        for row in rows:
            self._check(row)
            identity = identity_of(row)
            key = draw_key(self.seed, int(row.get("epoch", 0)), identity)
            captions = self._choose(row, identity, key, skipped)
            picture = self._load(row, identity, key, skipped) if captions else None
            if captions and picture is not None:
                usable.append((row, identity, key, captions, picture))
        batch: dict[str, Any] = {"row_ids": [identity for _, identity, *_ in usable], "skipped": skipped}
        return batch | self._batch(usable) if usable else batch

    def _batch(self, usable) -> dict[str, torch.Tensor]:
        """The tensors of rows that can be used."""
        chosen = [[row["captions"][place] for place in captions] for row, _, _, captions, _ in usable]
        batch = self._texts(usable, chosen) | self._images(usable)
        keys = [key for _, _, key, _, _ in usable]
        batch["image_ids"] = torch.tensor([identity_number(identity) for _, identity, *_ in usable])
        # the key is unsigned; as a tensor it wraps
        batch["draw_keys"] = torch.tensor([key - (1 << 64) if key >= 1 << 63 else key for key in keys])
        flat = [caption for captions in chosen for caption in captions]
        batch["text_weights"] = torch.tensor([self._weight(caption) for caption in flat])
        if self.guide:
            batch["is_guide"] = torch.tensor([caption["language"] == GUIDE for caption in flat])
        if self.masking is not None:
            masked = self._mask(batch["input_ids"], batch["attention_mask"], batch["image_index"], keys)
            batch["masked_input_ids"], batch["mlm_labels"] = masked
        return batch

    @staticmethod
    def _check(row: dict[str, Any]) -> None:
        for key in ("image", "captions"):
            if key not in row and not (key == "image" and "row" in row):
                raise ValueError(
                    f"the row of image '{row.get('image_id')}' has no '{key}' (it has {', '.join(sorted(row))}); "
                    "a data set needs the columns image, image_id and captions"
                )
        captions = row["captions"]
        if not isinstance(captions, (list, tuple, type(None))):
            raise ValueError(
                f"the captions of image '{row.get('image_id')}' are a {type(captions).__name__}; they should be "
                'a list such as [{"language": "de", "text": "ein Hund"}]'
            )

    def _choose(self, row, identity: str, key: int, skipped: SkipReport) -> list[int]:
        """Places of the captions of a row that go into the step; what cannot be used is counted."""
        captions, usable = row["captions"] or [], []
        for place, caption in enumerate(captions):
            cause, found = self._look(caption, identity)
            if cause is None:
                usable.append(place)
            elif self.on_broken == "raise":
                raise ValueError(found)
            else:
                skipped.add(cause, identity)
        chosen = choose_captions(
            [captions[place] for place in usable],
            self.languages,
            self.texts_per_image,
            language_counts=self.language_counts,
            generator=random.Random(key),
        )
        if not chosen:
            if self.on_broken == "raise":
                wanted = f" in {', '.join(self.languages)}" if self.languages else ""
                raise ValueError(f"image '{identity}' has no caption{wanted}")
            skipped.add(NO_CAPTIONS, identity)
        return [usable[place] for place in chosen]

    def _look(self, caption: Any, identity: str) -> tuple[str | None, str]:
        """What is wrong with a caption: a cause and a sentence; None and an empty one if nothing is."""
        if not isinstance(caption, Mapping) or not {"language", "text"} <= caption.keys():
            return NOT_A_RECORD, f"a caption of image '{identity}' is no object with language and text: {caption!r}"
        if not isinstance(caption["language"], str) or not caption["language"]:
            return NO_LANGUAGE, f"a caption of image '{identity}' has no language: {caption!r}"
        try:
            self.processor.prepare_text(caption["text"], f"a caption of image '{identity}'")
        except (TypeError, ValueError) as error:
            return CAPTION_EMPTY, str(error)
        return None, ""

    def _load(self, row, identity: str, key: int, skipped: SkipReport):
        """The photo of a row, True for one in the cache, or None and what is wrong with it counted."""
        if self.cache is not None and self.cache.images is not None:
            cause = self.cache.broken(row["row"])
            if cause is None:
                return True
            if self.on_broken == "raise":
                raise ValueError(f"image '{identity}' could not be read when its features were computed: {cause}")
            skipped.add(cause, identity)
            return None
        try:
            if self.augmentation is None:
                return load_image(row["image"])
            return load_augmented(row["image"], self.augmentation, key)
        except BrokenImageError as error:
            if self.on_broken == "raise":
                raise ValueError(f"image '{identity}': {error}") from error
            skipped.add(error.cause, identity)
            return None

    def _weight(self, caption: Mapping[str, Any]) -> float:
        own = caption.get("weight")
        return self.source_weights.get(caption.get("source"), 1.0) * (1.0 if own is None else float(own))

    def _images(self, usable) -> dict[str, torch.Tensor]:
        """Pixels, or the features that are cached."""
        if self.cache is not None and self.cache.images is not None:
            states = [self.cache.image_states(row["row"]) for row, *_ in usable]
            return {"image_hidden_states": torch.stack(states)}
        pictures = [picture for *_, picture in usable]
        if self.augmentation is None:
            return {"pixel_values": self.processor(images=pictures, return_tensors="pt")["pixel_values"]}
        image_processor = self.processor.image_processor
        pixels = normalize(torch.stack(pictures), image_processor.image_mean, image_processor.image_std)
        return {"pixel_values": pixels}

    def _texts(self, usable, chosen) -> dict[str, torch.Tensor]:
        """Token ids and, from a cache, the text tower's output for them."""
        if self.cache is None or self.cache.texts is None:
            texts = [[caption["text"] for caption in captions] for captions in chosen]
            return dict(self.processor(text=texts, return_tensors="pt", padding=True))
        places = [(row["row"], place) for row, _, _, choice, _ in usable for place in choice]
        states = [self.cache.text_states(*place) for place in places]
        ids = [self.cache.token_ids(*place) for place in places]
        pad = torch.nn.utils.rnn.pad_sequence
        lengths = torch.tensor([len(tokens) for tokens in ids])
        input_ids = pad(ids, batch_first=True, padding_value=self.processor.tokenizer.pad_token_id)
        return {
            "text_hidden_states": pad(states, batch_first=True),
            "input_ids": input_ids,
            "attention_mask": (torch.arange(input_ids.shape[1]) < lengths[:, None]).long(),
            "image_index": torch.tensor([i for i, (_, _, _, choice, _) in enumerate(usable) for _ in choice]),
        }

    def _mask(self, input_ids, attention_mask, image_index, keys: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Masks each image's texts by its own key, at their own length: padding and neighbours change nothing."""
        masked, labels = input_ids.clone(), torch.full_like(input_ids, IGNORED_LABEL)
        generator = torch.Generator()
        for text, image in enumerate(image_index.tolist()):
            if text == 0 or image_index[text - 1] != image:
                generator.manual_seed(keys[image] & (2**63 - 1))
            length = int(attention_mask[text].sum())
            own = input_ids[text : text + 1, :length]
            hidden, original = mask_tokens(own, torch.ones_like(own), self.masking, generator)
            masked[text, :length], labels[text, :length] = hidden[0], original[0]
        return masked, labels
