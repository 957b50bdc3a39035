"""Models of this package as mteb takes them: an encoder, and a matcher that re-ranks what an encoder found."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import torch
from huggingface_hub import ModelCard, try_to_load_from_cache
from huggingface_hub.constants import ENDPOINT
from torch.nn.functional import normalize
from tqdm.auto import tqdm
from transformers.utils.hub import extract_commit_hash

from ccrk import CCRkModel, CCRkProcessor
from ccrk.evaluation.features import evaluation_mode
from ccrk.evaluation.mteb_task import language_code
from ccrk.evaluation.reranking import RERANK_SCORES
from ccrk.fingerprints_ccrk import name_of, weights_name
from ccrk.inference_ccrk import ENCODERS, fast_passes

try:
    from mteb.models.abs_encoder import AbsEncoder
    from mteb.models.model_meta import ModelMeta
    from mteb.types import Licenses
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"models of mteb take {error.name}, which is not installed; try: pip install 'ccrk[mteb]'", name=error.name
    ) from error

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

TOWERS = ("vision_model", "visual_projection", "text_model", "text_projection")
IMAGES_KEPT = 4
"""Galleries of images whose embeddings are kept: a task asks for the same one in each of its languages."""
STATES_KEPT = 256 * 2**20
"""Bytes of image states that a matcher keeps while it scores the pairs of one language."""


class _Wrapped:
    """What both have in common: a model, its processor, and what mteb writes beside results."""

    _kind: str

    def __init__(
        self,
        model_name: str | os.PathLike,
        revision: str | None = None,
        *,
        device: str | None = None,
        bf16: bool = False,
        **kwargs: Any,
    ):
        hub = {} if revision is None else {"revision": revision}
        model = CCRkModel.from_pretrained(model_name, **hub, **kwargs)
        processor = CCRkProcessor.from_pretrained(model_name, **hub)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        name = os.fspath(model_name)
        self._set(model.to(device), processor, name, _commit(name, revision), bf16)

    @classmethod
    def of(cls, model, processor, name: str = "local/ccrk", *, bf16: bool = False):
        """Wraps a model that is loaded already.

        Args:
            model: a CCRk model; of a pretraining model the retriever is used.
            processor: its processor.
            name: `organisation/name`, under which mteb keeps results.
            bf16: compute under autocast to bfloat16.
        """
        made = cls.__new__(cls)
        made._set(model, processor, name, None, bf16)
        return made

    def _set(self, model, processor, name: str, commit: str | None, bf16: bool) -> None:
        self.model, self.processor, self.bf16 = model, processor, bf16
        self.mteb_model_meta = model_meta(model, processor, name, commit, kind=self._kind)
        self._note(**({"bf16": True} if bf16 else {}))

    def _note(self, **settings: Any) -> None:
        """Puts settings that change figures into what mteb's cache tells results apart by."""
        noted = {**(self.mteb_model_meta.experiment_kwargs or {}), **settings}
        self.mteb_model_meta = self.mteb_model_meta.model_copy(update={"experiment_kwargs": noted or None})

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device

    @contextmanager
    def _passes(self, parts: Sequence[str]) -> Iterator[None]:
        with torch.inference_mode(), evaluation_mode(self.model), fast_passes(self.model, parts, bf16=self.bf16):
            yield

    def _image_output(self, images: Sequence[Any]):
        pixels = self.processor(images=list(images), return_tensors="pt")["pixel_values"]
        return self.model.retriever.get_image_features(pixels.to(self.device, self.model.dtype))

    def _text_batch(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        """Tokens of texts. One of which nothing is left, as benchmarks have them, is embedded as an empty text."""
        prepared = []
        for text in texts:
            try:
                prepared.append(self.processor.prepare_text(text))
            except ValueError:
                prepared.append("")
        batch = self.processor.encode_texts(prepared, padding=True, truncation=True, return_tensors="pt")
        return {name: batch[name].to(self.device) for name in ("input_ids", "attention_mask")}


class CCRkEncoder(_Wrapped, AbsEncoder):
    """A model as mteb's encoder: texts, photos, or pairs of both, as unit vectors.

    ```python
    mteb.evaluate(CCRkEncoder("org/ccrk"), tasks=mteb.get_tasks(["XFlickr30kCoT2IRetrieval"]))
    ```

    Prompts and instructions of tasks are not used, as such models are not trained with any. Photos of a gallery are
    embedded once for all languages of a task. The revision under which mteb keeps results is that of the weights at
    the time when the encoder is made.

    Args:
        model_name: folder or Hub id.
        revision: of a Hub id.
        device: such as `cuda`, which is taken by default where there is one.
        bf16: compute under autocast to bfloat16.
        **kwargs: of `CCRkModel.from_pretrained`.
    """

    _kind = "dense"

    def _set(self, *args: Any) -> None:
        super()._set(*args)
        self._kept: OrderedDict[str, np.ndarray] = OrderedDict()

    def encode(
        self,
        inputs: DataLoader,
        *,
        batch_size: int = 32,
        show_progress_bar: bool = True,
        **kwargs: Any,
    ) -> np.ndarray:
        """Embeds what mteb gives: see its `EncoderProtocol.encode`.

        Args:
            inputs: batches of `text`, `image` or both.
            batch_size: texts in one pass, which are sorted by length first; photos come in the batches of `inputs`.
            show_progress_bar: show one.
            **kwargs: of the task; not used.

        Returns:
            (N, D) float32 unit vectors. Of a photo and a text the one between their two.

        Raises:
            ValueError: if there is neither text nor image.
        """
        columns = inputs.dataset.features
        kinds = [kind for kind in ("image", "text") if kind in columns]
        if not kinds:
            raise ValueError(f"nothing to embed: neither 'text' nor 'image' among the columns {', '.join(columns)}")
        known = self._gallery_name(inputs) if kinds == ["image"] else None
        if known is not None and known in self._kept:
            return self._kept[known]
        texts, images = [], []
        with self._passes(TOWERS):
            for batch in tqdm(inputs, desc=" and ".join(kinds), disable=not show_progress_bar):
                texts += batch.get("text", [])
                if "image" in batch:
                    images.append(self._image_output(batch["image"]).pooler_output.float().cpu())
            found = [torch.cat(images)] if images else []
            if texts:
                found.append(self._embed_texts(texts, batch_size))
        embeds = found[0] if len(found) == 1 else normalize(sum(found), dim=-1)
        embeds = embeds.numpy()
        if known is not None:
            self._kept[known] = embeds
            while len(self._kept) > IMAGES_KEPT:
                self._kept.popitem(last=False)
        return embeds

    def _gallery_name(self, inputs: DataLoader) -> str | None:
        """A name for photos and what embeds them, as the model may learn meanwhile; None if the photos have none."""
        of_photos = getattr(inputs.dataset, "_fingerprint", None)
        parts = ["vision_model", "visual_projection"]
        return None if of_photos is None else f"{of_photos} {weights_name(self.model.retriever, parts)}"

    def _embed_texts(self, texts: list[str], batch_size: int) -> torch.Tensor:
        order = sorted(range(len(texts)), key=lambda i: len(texts[i].encode()))
        embeds = torch.empty(len(texts), self.model.retriever.config.projection_dim)
        for start in range(0, len(order), batch_size):
            part = order[start : start + batch_size]
            output = self.model.retriever.get_text_features(**self._text_batch([texts[i] for i in part]))
            embeds[part] = output.pooler_output.float().cpu()
        return embeds


class CCRkReranker(_Wrapped):
    """The fusion encoder as mteb's cross-encoder: scores photos against texts, for the second stage.

    ```python
    mteb.evaluate(CCRkEncoder("org/ccrk"), task, prediction_folder="found")
    mteb.evaluate(CCRkReranker("org/ccrk"), task.convert_to_reranking("found", top_k=32))
    ```

    mteb hands over every pair by itself, so a photo is opened once for every text that it is scored against;
    `ccrk evaluate --rerank` opens it once.

    """

    _kind = "cross-encoder"
    _score = "itm+sim"

    @property
    def score(self) -> str:
        """`itm+sim`, `itm` or `sim`, as `rerank_score` of `evaluate_retrieval`; may be set.

        Raises:
            ValueError: if it is set to something else.
        """
        return self._score

    @score.setter
    def score(self, score: str) -> None:
        if score not in RERANK_SCORES:
            raise ValueError(f"score is '{score}'; it is one of {', '.join(RERANK_SCORES)}")
        self._score = score
        self._note(score=score)

    def predict(
        self, inputs1: DataLoader, inputs2: DataLoader, *, show_progress_bar: bool = True, **kwargs: Any
    ) -> np.ndarray:
        """Scores pairs: see mteb's `CrossEncoderProtocol.predict`.

        Args:
            inputs1: batches of queries, texts or photos, with their `id`.
            inputs2: batches of what was found for them, photos or texts, side by side with the queries.
            show_progress_bar: show one.
            **kwargs: of the task; not used.

        Returns:
            (N,) float32.

        Raises:
            ValueError: if the pairs are not of a photo and a text each.
        """
        kinds = [{"image", "text"} & set(inputs.dataset.features) for inputs in (inputs1, inputs2)]
        if sorted(map(sorted, kinds)) != [["image"], ["text"]]:
            given = " and ".join("+".join(sorted(kind)) or "nothing" for kind in kinds)
            raise ValueError(f"re-ranking takes pairs of a photo and a text; these are of {given}")
        scores: list[np.ndarray] = []
        kept: OrderedDict[Any, tuple[torch.Tensor, ...]] = OrderedDict()
        with self._passes(ENCODERS):
            pairs = zip(inputs1, inputs2, strict=True)
            for first, second in tqdm(pairs, desc="pairs", total=len(inputs1), disable=not show_progress_bar):
                photos, texts = (first, second) if "image" in first else (second, first)
                scores.append(self._score_pairs(photos, texts, kept).float().cpu().numpy())
        return np.concatenate(scores) if scores else np.zeros(0, np.float32)

    def _score_pairs(self, photos: dict, texts: dict, kept: OrderedDict) -> torch.Tensor:
        """Scores (N,) of a batch of pairs; each photo and each text in it is encoded once."""
        retriever = self.model.retriever
        images, image_rows = np.unique(photos["id"], return_inverse=True)
        places = {i: place for place, i in reversed(list(enumerate(photos["id"])))}
        new = [i for i in images if i not in kept]
        if new:
            output = self._image_output([photos["image"][places[i]] for i in new])
            kept.update(zip(new, zip(output.last_hidden_state, output.pooler_output, strict=True), strict=True))
        hidden, embeds = (torch.stack(column) for column in zip(*(kept[i] for i in images), strict=True))
        while sum(state.nbytes for state, _ in kept.values()) > STATES_KEPT:
            kept.popitem(last=False)
        unique, text_rows = np.unique(texts["text"], return_inverse=True)
        batch = self._text_batch(unique.tolist())
        output = retriever.get_text_features(**batch)
        image_rows, text_rows = torch.from_numpy(image_rows), torch.from_numpy(text_rows)
        similarities = (embeds[image_rows] * output.pooler_output[text_rows]).sum(-1).float()
        if self.score == "sim":
            return similarities
        logits = retriever.match(
            image_hidden_states=hidden,
            text_hidden_states=output.last_hidden_state,
            attention_mask=batch["attention_mask"],
            pairs=torch.stack([image_rows, text_rows], 1),
        ).float()
        if self.score == "itm":
            return logits[:, 1]
        return logits[:, 1] - logits[:, 0] + similarities / retriever.temperature.float()


def model_meta(model, processor, name: str, commit: str | None = None, kind: str = "dense") -> ModelMeta:
    """What mteb writes beside results, from the configuration and, where there is one, the model card.

    Args:
        model: a CCRk model.
        processor: its processor.
        name: folder or Hub id; a folder counts as `local/` and its name.
        commit: of the Hub, which is the revision then. Without it one is made of weights and processor, so that mteb's
            cache does not take the results of other weights for those of these.
        kind: `dense` or `cross-encoder`.
    """
    retriever, config = model.retriever, model.retriever.config
    card = _card(name)
    revision = commit
    if commit is None:
        parts = [part for part in ENCODERS if kind == "cross-encoder" or part in TOWERS]
        revision = name_of([weights_name(retriever, parts), processor.to_dict()])
    full = name if name.count("/") == 1 and not Path(name).is_dir() else f"local/{Path(name).resolve().name}"
    parameters = sum(parameter.numel() for parameter in retriever.parameters())
    limits = [limit for limit in (processor.max_length, processor.tokenizer.model_max_length) if limit is not None]
    licence, tags = card.get("license"), card.get("language") or []
    codes = sorted({language_code(tag) for tag in ([tags] if isinstance(tags, str) else tags)} - {"und"})
    known_licences = {one for option in get_args(Licenses) for one in get_args(option) or (option,)}
    return ModelMeta(
        loader=CCRkReranker if kind == "cross-encoder" else CCRkEncoder,
        name=full,
        revision=revision,
        release_date=None,
        languages=codes or None,
        n_parameters=parameters,
        n_embedding_parameters=model.get_input_embeddings().weight.numel(),
        memory_usage_mb=sum(p.numel() * p.element_size() for p in retriever.parameters()) / 2**20,
        max_tokens=min(limits),
        embed_dim=config.projection_dim,
        license=licence if licence in known_licences else None,
        open_weights=True,
        public_training_code=None,
        public_training_data=None,
        framework=["PyTorch", "Transformers"],
        reference=f"{ENDPOINT}/{name}" if commit else None,
        similarity_fn_name="cosine",
        use_instructions=False,
        training_datasets=None,
        modalities=["image", "text"],
        model_type=[kind],
    )


def _commit(name: str, revision: str | None) -> str | None:
    """The commit of a model that was loaded from the Hub just now; None of a folder."""
    found = None if Path(name).is_dir() else try_to_load_from_cache(name, "config.json", revision=revision)
    return extract_commit_hash(found, None) if isinstance(found, str) else None


def _card(name: str) -> dict[str, Any]:
    """The metadata of a model card in a folder; of the Hub only what is there already."""
    path = Path(name) / "README.md" if Path(name).is_dir() else None
    if path is None and name.count("/") == 1:
        cached = try_to_load_from_cache(name, "README.md")
        path = Path(cached) if isinstance(cached, str) else None
    if path is None or not path.is_file():
        return {}
    return ModelCard.load(path, ignore_metadata_errors=True).data.to_dict()


__all__ = ["CCRkEncoder", "CCRkReranker", "model_meta"]
