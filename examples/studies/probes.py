"""Geometry of alignment and directions of the gradient, looked at while a model trains."""

from __future__ import annotations

import time
from itertools import combinations
from typing import Any

import torch
from transformers import TrainerCallback

from ccrk.losses_ccrk import one_to_one

IMAGES = 96


class GeometryProbe(TrainerCallback):
    """Looks at a fixed batch of training rows every so many steps; the training is left as it is.

    Args:
        trainer: a `StudyTrainer`.
        rows: its data.
        every: steps between two looks.

    Attributes:
        seen: a list of figures, one for each look.
        cpu_seconds: spent on looking.
    """

    def __init__(self, trainer, rows, every: int):
        self.trainer, self.every = trainer, every
        self.seen: list[dict[str, Any]] = []
        self.cpu_seconds = 0.0
        collator = trainer.data_collator
        kept, collator.texts_per_image = collator.texts_per_image, None  # all languages, whatever a step sees
        self.batch = collator([rows[row] for row in range(min(IMAGES, len(rows)))])
        collator.texts_per_image = kept
        for name in ("row_ids", "skipped", "draw_keys"):
            self.batch.pop(name, None)
        self.languages = self.batch.pop("text_languages")
        self.tags = collator.tags

    def on_step_begin(self, args, state, control, **kwargs):
        """Before the first step, and before every so-manieth."""
        if state.global_step % self.every == 0:
            self.look(state.global_step)

    def on_train_end(self, args, state, control, **kwargs):
        """After the last step."""
        self.look(state.global_step)

    def look(self, step: int) -> None:
        """Adds figures of the model as it is."""
        started, model = time.process_time(), self.trainer.model
        training = model.training
        model.eval()
        with torch.enable_grad():
            outputs = model(**self.batch)
            images, texts = outputs.image_embeds, outputs.text_embeds
            found = {"step": step} | self._geometry(images.detach(), texts.detach())
            found |= self._directions(model, images, texts)
        model.zero_grad(set_to_none=True)
        model.train(training)
        self.seen.append(found)
        self.cpu_seconds += time.process_time() - started

    def _by_language(self, texts: torch.Tensor) -> torch.Tensor:
        """(K, B, D): every row has one caption in each language, in the order of the languages."""
        return torch.stack([texts[self.languages == place] for place in self.languages.unique()])

    def _geometry(self, images: torch.Tensor, texts: torch.Tensor) -> dict[str, float]:
        """Distances between unit vectors, as means over images."""
        of_language = self._by_language(texts)
        distances = (of_language - images).norm(dim=-1)  # (K, B)
        centroid = of_language.mean(0)
        return {
            "distance": float(distances.mean()),
            "distance variance": float(distances.var(0, unbiased=False).mean()),
            "centroid distance": float((images - centroid).norm(dim=-1).mean()),
            "spread": float((of_language - centroid).norm(dim=-1).mean()),
        }

    def _directions(self, model, images: torch.Tensor, texts: torch.Tensor) -> dict[str, float]:
        """Cosines between the gradients of the languages' own one-to-one losses, and of each with their mean.

        The mean of them is the direction of all languages together; a step on one language goes by its own.
        """
        parts = {
            "projections": [p for n, p in model.named_parameters() if "projection" in n and p.requires_grad],
            "towers": [p for n, p in model.named_parameters() if "_model." in n and p.requires_grad],
        }
        parts = {name: weights for name, weights in parts.items() if weights}
        wanted = [p for weights in parts.values() for p in weights]
        temperature = model.retriever.temperature.detach()
        gradients: list[list[torch.Tensor]] = []
        for place in self.languages.unique():
            logits = images @ texts[self.languages == place].t() / temperature
            grads = torch.autograd.grad(
                one_to_one(logits, self.batch["image_ids"]), wanted, retain_graph=True, allow_unused=True
            )
            gradients.append([torch.zeros_like(p) if g is None else g for p, g in zip(wanted, grads, strict=True)])
        found, start = {}, 0
        for name, weights in parts.items():
            stop = start + len(weights)
            flat = torch.stack([torch.cat([g.flatten() for g in one[start:stop]]) for one in gradients])
            start = stop
            found |= {f"{key} {name}": value for key, value in _cosines(flat).items()}
        return found


def _cosines(gradients: torch.Tensor) -> dict[str, float]:
    """Of (K, parameters): the mean and least cosine of two languages, and the mean cosine of one with the mean."""
    unit = torch.nn.functional.normalize(gradients, dim=1)
    pairs = [float(unit[a] @ unit[b]) for a, b in combinations(range(len(unit)), 2)]
    whole = torch.nn.functional.normalize(gradients.mean(0), dim=0)
    return {
        "cosine": sum(pairs) / len(pairs),
        "least cosine": min(pairs),
        "with the mean": float((unit @ whole).mean()),
    }
