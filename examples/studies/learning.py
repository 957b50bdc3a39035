"""Training of the studies: `CCRkTrainer`, and the objectives that the package does not have."""

from __future__ import annotations

from typing import Any

import torch

from ccrk.data.augmentation import draw_key
from ccrk.losses_ccrk import one_to_one
from ccrk.trainer.collator_ccrk import CCRkDataCollator
from ccrk.trainer.trainer_ccrk import CCRkTrainer

TRUE_ENGLISH = "en-x-true"  # English that is right where that of the image is a wrong one


def per_language(logits: torch.Tensor, image_index: torch.Tensor, languages: torch.Tensor, ids) -> torch.Tensor:
    """The mean over languages of the one-to-one loss of images and texts in that language alone.

    Its softmax over texts sees the texts of one language (ATRI, arXiv:2502.14627, as quoted there for 1-to-K), so the
    K texts of an image don't compete with one another.
    """
    losses = []
    for language in languages.unique():
        texts = (languages == language).nonzero().flatten()
        images = image_index[texts]
        losses.append(one_to_one(logits[images][:, texts], ids[images]))
    return torch.stack(losses).mean()


def pivot(
    image_embeds: torch.Tensor, text_embeds: torch.Tensor, temperature, image_index, languages, tags: list[str], ids
) -> torch.Tensor:
    """Images are aligned with English alone, and every other language with English.

    The mean of the one-to-one loss of images and English and of the mean over the others of theirs with English. Where
    there is a right English caption beside a wrong one, that is what translations are aligned with.
    """
    english = (languages == tags.index("en")).nonzero().flatten()
    rows = image_index[english]
    images = one_to_one(image_embeds[rows] @ text_embeds[english].t() / temperature, ids[rows])
    source = tags.index(TRUE_ENGLISH) if TRUE_ENGLISH in tags else tags.index("en")
    source_texts = text_embeds[languages == source]
    others = []
    for place, tag in enumerate(tags):
        if tag not in ("en", TRUE_ENGLISH):
            others.append(one_to_one(source_texts @ text_embeds[languages == place].t() / temperature, ids[rows]))
    return (images + torch.stack(others).mean()) / 2


class StudyCollator(CCRkDataCollator):
    """A collator that says in which language each text is, as its place in `tags`."""

    tags: list[str] = []

    def _choose(self, row, identity: str, key: int, skipped) -> list[int]:
        if "place" in row:  # scenes recur within an epoch under one id; languages are drawn for each row by itself
            key = draw_key(key, 0, str(row["place"]))
        return super()._choose(row, identity, key, skipped)

    def _batch(self, usable) -> dict[str, Any]:
        batch = super()._batch(usable)
        found = [row["captions"][place]["language"] for row, _, _, chosen, _ in usable for place in chosen]
        batch["text_languages"] = torch.tensor([self.tags.index(tag) for tag in found])
        return batch


class StudyTrainer(CCRkTrainer):
    """The trainer of the package with another contrastive objective, where `objective` names one.

    Attributes:
        objective: `per-language`, `pivot`, or None for what the arguments say.
    """

    objective: str | None = None

    @staticmethod
    def _make_collator(model, args, processor, dataset) -> StudyCollator:
        made = StudyCollator(processor)
        vars(made).update(vars(CCRkTrainer._make_collator(model, args, processor, dataset)))
        return made

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """As in the package, or the objective of the study."""
        languages = inputs.pop("text_languages", None)
        if self.objective is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        self._before_step(model)
        image_index, ids = inputs["image_index"], inputs["image_ids"]
        outputs = model(**inputs, return_loss=True)  # for the keyed dropout that comes with it; its loss is not used
        images, texts = outputs.image_embeds, outputs.text_embeds
        temperature = model.retriever.temperature
        if self.objective == "per-language":
            loss = per_language(images @ texts.t() / temperature, image_index, languages, ids)
        else:
            loss = pivot(images, texts, temperature, image_index, languages, self.data_collator.tags, ids)
        self._note_losses(loss, {"contrastive": loss})
        return (loss, outputs) if return_outputs else loss
