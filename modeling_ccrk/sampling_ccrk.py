"""Which pairs of a batch are matched: one positive text, one negative image, one negative text for each image.

Draws are functions of keys (see `draws_ccrk`): what an image draws does not depend on how the batch is cut. To draw
with weights w is to take the largest of w / E, E exponential: the race of exponential clocks, whose winner is
distributed as w, and which has no order in which candidates are visited.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from .draws_ccrk import mix, uniform
from .losses_ccrk import BatchLayout, positive_mask

EPSILON = 1e-5  # the authors add it to every sampling weight, so that none is exactly zero
NEGATIVE_STRATEGIES = ("hard", "hardest", "random")
POSITIVE_CHOICES = ("probability", "similarity", "uniform")


@dataclass
class MatchingPairs:
    """Rows chosen for image-text matching, one entry for each image that is matched (N of them).

    Attributes:
        image: (N,) row of the image.
        positive_text: (N,) row of the text taken as its match.
        negative_image: (N,) row of an image that `positive_text` does not describe.
        negative_text: (N,) row of a text that does not describe `image`.
        total: number of pairs of images in all processes; N without several.
    """

    image: torch.LongTensor
    positive_text: torch.LongTensor
    negative_image: torch.LongTensor
    negative_text: torch.LongTensor
    total: int | None = None

    def __len__(self) -> int:
        return len(self.image)

    def part(self, start: int, stop: int) -> MatchingPairs:
        """Entries `start` to `stop`, as a part of the same total."""
        chosen = slice(start, stop)
        return MatchingPairs(
            self.image[chosen],
            self.positive_text[chosen],
            self.negative_image[chosen],
            self.negative_text[chosen],
            len(self) if self.total is None else self.total,
        )

    def stacked(self) -> tuple[torch.LongTensor, torch.LongTensor, torch.LongTensor]:
        """Image rows, text rows and labels (3N,): matches, then negative images, then negative texts."""
        images = torch.cat([self.image, self.negative_image, self.image])
        texts = torch.cat([self.positive_text, self.positive_text, self.negative_text])
        labels = torch.zeros_like(images)
        labels[: len(self.image)] = 1
        return images, texts, labels


def positive_text_weights(logits: torch.Tensor, image_index: torch.LongTensor, choice: str) -> torch.Tensor:
    """Weights by which each image's positive text is drawn.

    The authors' `neg_sample_type`: `"uniform"` (0) knows no preference; `"probability"` (1, their default) weighs a
    text by how far its image-to-text probability stays below the largest of the batch, `"similarity"` (2) the same
    with the similarity itself: the less similar translation is the more likely one.

    Args:
        logits: (B, T).
        image_index: (T,).
        choice: one of the three.

    Returns:
        (B, T), zero where the text is not the image's own.

    Raises:
        ValueError: for another choice.
    """
    own = positive_mask(image_index, logits.shape[0])
    if choice == "uniform":
        return own.to(logits.dtype)
    scores = _positive_scores(logits, choice)
    return _below(scores, scores.max()) * own


def _positive_scores(logits: torch.Tensor, choice: str) -> torch.Tensor:
    """What a positive text's weight falls with: (n, T) for rows of logits."""
    if choice == "uniform":
        return torch.zeros_like(logits)
    if choice == "probability":
        return logits.softmax(1)
    if choice == "similarity":
        return logits
    raise ValueError(f"positive_choice '{choice}' is not one of {', '.join(repr(c) for c in POSITIVE_CHOICES)}")


def _below(scores: torch.Tensor, largest: torch.Tensor) -> torch.Tensor:
    # the epsilon is added last: beside similarities in the hundreds float32 would lose it
    return largest - scores + EPSILON


def negative_weights(
    logits: torch.Tensor,
    image_index: torch.LongTensor,
    image_ids: torch.Tensor | None = None,
    hardness: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights by which hard negatives are drawn.

    Args:
        logits: (B, T).
        image_index: (T,).
        image_ids: (B,) optional; a text of an image with the same id is never a negative.
        hardness: 1 draws by the softmax of the similarities, 0 uniformly, between them a mixture of the two. From
            scratch a matcher learns more surely when it rises from 0 to 1.

    Returns:
        Weights of texts for each image (B, T) and of images for each text (T, B).
    """
    negatives = ~positive_mask(image_index, logits.shape[0], image_ids)
    return _row_weights(logits, negatives, hardness), _row_weights(logits.t(), negatives.t(), hardness)


def _row_weights(logits: torch.Tensor, negatives: torch.BoolTensor, hardness: float) -> torch.Tensor:
    """Weights of the candidates (columns) of each row."""
    weights = logits.softmax(1) + EPSILON
    if hardness < 1:
        weights = hardness * weights + (1 - hardness) / logits.shape[1]
    return weights * negatives


@dataclass
class SamplingRules:
    """How pairs are chosen.

    Attributes:
        positive_choice: see `positive_text_weights`.
        strategy: of negatives: `"hard"` draws by the softmax of the similarities (the authors), `"hardest"` takes the
            most similar one, `"random"` draws uniformly.
        hardness: for `"hard"`, see `negative_weights`.
        count: at most so many images of the whole batch are matched, drawn at random; all without it.
        lenient: no pairs at all, rather than an error, where the batch shows fewer than two different things.
        rows_at_once: rows of similarities held at once.
    """

    positive_choice: str = "probability"
    strategy: str = "hard"
    hardness: float = 1.0
    count: int | None = None
    lenient: bool = False
    rows_at_once: int = 1024

    def __post_init__(self):
        if self.strategy not in NEGATIVE_STRATEGIES:
            names = ", ".join(repr(name) for name in NEGATIVE_STRATEGIES)
            raise ValueError(f"negative_strategy '{self.strategy}' is not one of {names}")

    def winners(self, weights: torch.Tensor, row_keys: torch.LongTensor, column_keys: torch.LongTensor):
        """One candidate (column) for each row of weights (n, C), in proportion to them, or the heaviest.

        Raises:
            ValueError: if a row has no candidate.
        """
        if not (weights.amax(1) > 0).all():
            raise ValueError(
                "matching needs a negative for every text, but there is none for some: a batch takes at least two "
                "images with different ids"
            )
        if self.strategy == "hardest":
            return weights.argmax(1)
        return (weights / -uniform(row_keys[:, None], column_keys[None]).log()).argmax(1)


def matched_images(layout: BatchLayout, image_keys: torch.LongTensor, count: int | None) -> torch.LongTensor:
    """Rows of the images of the whole batch that are matched: those with texts, at most `count` of them."""
    described = torch.bincount(layout.image_index, minlength=layout.num_images).nonzero().flatten()
    if count is None or count >= len(described):
        return described
    return described[mix(image_keys[described], 2).argsort()[:count]].sort().values


@torch.no_grad()
def draw_matching_pairs(
    image_rows: Callable[[torch.LongTensor], torch.Tensor],
    text_rows: Callable[[torch.LongTensor], torch.Tensor],
    layout: BatchLayout,
    rules: SamplingRules,
    image_keys: torch.LongTensor,
    text_keys: torch.LongTensor,
    largest: Callable[[torch.Tensor], torch.Tensor] = lambda value: value,
) -> MatchingPairs:
    """Draws the pairs of a process's own images, with candidates from the whole batch.

    Args:
        image_rows: gives rows of the logits (n, T) for rows of images.
        text_rows: gives columns of the logits, transposed (n, B), for rows of texts.
        layout: `losses_ccrk.BatchLayout`.
        rules: how.
        image_keys: (B,) int64 of the whole batch.
        text_keys: (T,) int64.
        largest: reduces a scalar to its maximum over processes.

    Raises:
        ValueError: if logits are not finite, or a text or an image has no negative.
    """
    chosen = matched_images(layout, image_keys, rules.count)
    if rules.lenient and len(torch.unique(chosen if layout.image_ids is None else layout.image_ids[chosen])) < 2:
        chosen = chosen[:0]
    own = chosen[layout.owned(chosen, "images")]
    hardness = 0.0 if rules.strategy == "random" else rules.hardness
    ids = image_keys.new_tensor(range(layout.num_images)) if layout.image_ids is None else layout.image_ids
    text_ids = ids[layout.image_index]
    keys = mix(image_keys, 3), mix(image_keys, 4), mix(image_keys, 5)
    scores = torch.zeros(len(layout.image_index), dtype=torch.float32, device=ids.device)
    top, negative_text = scores.new_full((), -torch.inf), []
    for rows in _pieces(own, rules):
        logits = _checked(image_rows(rows))
        score = _positive_scores(logits, rules.positive_choice)
        top = torch.maximum(top, score.max().float())
        mine = layout.image_index[None] == rows[:, None]
        place, text = mine.nonzero(as_tuple=True)
        scores[text] = score[place, text].float()
        weights = _row_weights(logits, ids[rows][:, None] != text_ids[None], hardness)
        negative_text.append(rules.winners(weights, keys[0][rows], text_keys))
    weights = _below(scores, largest(top)) / -uniform(keys[1][layout.image_index], text_keys).log()
    positive_text = _best_text(weights, layout)[own]
    negative_image = []
    for rows, texts in zip(_pieces(own, rules), _pieces(positive_text, rules), strict=True):
        logits = _checked(text_rows(texts))
        weights = _row_weights(logits, text_ids[texts][:, None] != ids[None], hardness)
        negative_image.append(rules.winners(weights, keys[2][rows], image_keys))
    empty = own.new_zeros(0)
    return MatchingPairs(
        own,
        positive_text,
        torch.cat([empty, *negative_image]),
        torch.cat([empty, *negative_text]),
        len(chosen),
    )


def _pieces(rows: torch.LongTensor, rules: SamplingRules):
    return rows.split(rules.rows_at_once) if len(rows) else ()


def _checked(logits: torch.Tensor) -> torch.Tensor:
    if not logits.isfinite().all():
        raise ValueError("similarities are not finite (NaN or infinite), so no negatives can be drawn from them")
    return logits


def _best_text(weights: torch.Tensor, layout: BatchLayout) -> torch.LongTensor:
    """For each image (B,) the row of its text of the largest weight; the first of equals."""
    best = weights.new_full((layout.num_images,), -torch.inf).scatter_reduce(0, layout.image_index, weights, "amax")
    rows = torch.arange(len(weights), device=weights.device)
    rows = torch.where(weights == best[layout.image_index], rows, len(weights))
    return rows.new_full((layout.num_images,), len(weights)).scatter_reduce(0, layout.image_index, rows, "amin")


def sample_matching_pairs(
    logits: torch.Tensor,
    image_index: torch.LongTensor,
    *,
    image_ids: torch.Tensor | None = None,
    positive_choice: str = "probability",
    strategy: str = "hard",
    hardness: float = 1.0,
    count: int | None = None,
    generator: torch.Generator | None = None,
) -> MatchingPairs:
    """Draws the pairs of a batch that one process holds, from its logits.

    Args:
        logits: (B, T) similarities divided by the temperature.
        image_index: (T,).
        image_ids: (B,) optional, see `negative_weights`.
        positive_choice: see `SamplingRules`, as the next three.
        strategy: of negatives.
        hardness: of negatives.
        count: images that are matched.
        generator: source of the keys, the global one by default.

    Raises:
        ValueError: if logits are not finite, or a text has no negative image, as in a batch of a single image.
    """
    logits = logits.detach().float()
    keys = torch.randint(2**62, (sum(logits.shape),), generator=generator).to(logits.device)
    return draw_matching_pairs(
        lambda rows: logits[rows],
        lambda rows: logits[:, rows].t(),
        BatchLayout.single(image_index, logits.shape[0], image_ids=image_ids),
        SamplingRules(positive_choice, strategy, hardness, count, lenient=False),
        keys[: logits.shape[0]],
        keys[logits.shape[0] :],
    )


__all__ = ["MatchingPairs", "SamplingRules", "draw_matching_pairs", "sample_matching_pairs"]
