"""Processor of CCRk: photos and captions in, a training batch or queries out."""

from __future__ import annotations

import re

import torch
from transformers.feature_extraction_utils import BatchFeature
from transformers.processing_utils import ProcessingKwargs, ProcessorMixin, Unpack

PUNCTUATION = re.compile(r"[,.'!?\"()*#:;~]")


class CCRkProcessorKwargs(ProcessingKwargs, total=False):  # type: ignore[call-arg]  # a TypedDict; mypy sees Any
    """Arguments of a call, with their defaults."""

    _defaults = {"text_kwargs": {"padding": True, "truncation": True}}


def clean_caption(text: str, max_words: int | None = None) -> str:
    """Cleans a caption as the authors do.

    Lower case; the ASCII marks `,.'!?"()*#:;~`, hyphens and slashes become spaces; `<person>` becomes `person`; white
    space is collapsed; words beyond `max_words` are cut off. A text without spaces, as in Chinese, is one word.
    """
    text = PUNCTUATION.sub(" ", text.lower()).replace("-", " ").replace("/", " ").replace("<person>", "person")
    words = text.split()
    return " ".join(words[:max_words])


class CCRkProcessor(ProcessorMixin):
    """An image processor and a tokenizer as one.

    Args:
        image_processor: a [`CCRkImageProcessor`].
        tokenizer: an XLM-R or BERT family tokenizer.
        clean_text: clean captions by `clean_caption`, as the authors do; on for converted checkpoints.
        max_words: with `clean_text`, words that are kept.
        max_length: tokens per text, start and end included; the tokenizer's limit by default.
        text_prefix: put before every text, for towers that were trained with one ("query: ").
    """

    valid_processor_kwargs = CCRkProcessorKwargs

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        clean_text: bool = False,
        max_words: int | None = None,
        max_length: int | None = None,
        text_prefix: str = "",
        **kwargs,
    ):
        super().__init__(image_processor, tokenizer, **kwargs)
        self.clean_text = clean_text
        self.max_words = max_words
        self.max_length = max_length
        self.text_prefix = text_prefix

    def __call__(self, images=None, text=None, **kwargs: Unpack[CCRkProcessorKwargs]) -> BatchFeature:
        """Prepares images, texts or both.

        Args:
            images: one image or a list: PIL images, arrays, tensors, or paths.
            text: a string or a list of strings (queries, no `image_index`); or a list of lists, the captions of each
                image in turn, whose number may differ from image to image.
            **kwargs: of the tokenizer and the image processor, `return_tensors` among them. Texts are padded to the
                longest and truncated unless told otherwise.

        Returns:
            `pixel_values (B, 3, H, W)`, `input_ids (T, L)`, `attention_mask (T, L)` and, for nested texts,
            `image_index (T,)`, whichever were asked for.

        Raises:
            ValueError: if nothing is given, a text is empty, or the numbers of images and caption lists differ.
            TypeError: if a text is not a string.
        """
        if images is None and text is None:
            raise ValueError("give images, text or both")
        init = self.tokenizer.init_kwargs if self.tokenizer is not None else {}
        # a tokenizer is saved with the length that it was last used with, which is nobody's wish
        init = {name: value for name, value in init.items() if name != "max_length"}
        options = self._merge_kwargs(CCRkProcessorKwargs, tokenizer_init_kwargs=init, **kwargs)
        data = {}
        if images is not None:
            data.update(self.image_processor(images, **options["images_kwargs"]))
        return_tensors = options["text_kwargs"].get("return_tensors")
        if text is not None:
            texts, image_index = self.flatten_texts(text)
            if image_index is not None and images is not None and len(text) != len(data["pixel_values"]):
                raise ValueError(
                    f"{len(data['pixel_values'])} images but captions for {len(text)}: give one list for each image"
                )
            data.update(self.encode_texts(texts, **options["text_kwargs"]))
            if image_index is not None:
                data["image_index"] = torch.tensor(image_index) if return_tensors == "pt" else image_index
        return BatchFeature(data, tensor_type=return_tensors)

    def encode_texts(self, texts: list[str], **kwargs) -> dict:
        """Tokenizes prepared texts."""
        if self.max_length is not None and kwargs.get("max_length") is None and kwargs.get("truncation"):
            # a tokenizer that was told to take fewer has its way: sentence-transformers sets its limit there
            kwargs["max_length"] = min(self.max_length, self.tokenizer.model_max_length)
        kwargs.setdefault("return_token_type_ids", False)
        return dict(self.tokenizer(texts, **kwargs))

    def flatten_texts(self, text) -> tuple[list[str], list[int] | None]:
        """Prepares texts and, where they are nested, says which image each describes.

        Returns:
            The cleaned texts with their prefix, and `image_index` or None.

        Raises:
            ValueError, TypeError: naming the text at fault.
        """
        if isinstance(text, str):
            text = [text]
        if not isinstance(text, (list, tuple)) or not text:
            raise ValueError("text must be a string, a list of strings, or a list of caption lists; and not empty")
        nested = [isinstance(item, (list, tuple)) for item in text]
        if not any(nested):
            return [self.prepare_text(item, f"text {i}") for i, item in enumerate(text)], None
        if not all(nested):
            raise ValueError("text mixes strings and lists; nest the captions of every image or of none")
        texts, image_index = [], []
        for row, captions in enumerate(text):
            for number, caption in enumerate(captions):
                texts.append(self.prepare_text(caption, f"caption {number} of image {row}"))
                image_index.append(row)
        if not texts:
            raise ValueError("none of the images has a caption")
        return texts, image_index

    def prepare_text(self, text: str, name: str = "the text") -> str:
        """Cleans one text and puts the prefix before it.

        Raises:
            TypeError: if it is not a string.
            ValueError: if nothing of it is left.
        """
        if not isinstance(text, str):
            raise TypeError(f"{name} is {type(text).__name__}, not a string")
        cleaned = clean_caption(text, self.max_words) if self.clean_text else text.strip()
        # control characters are no language; a text of nothing else is an empty one
        cleaned = "".join(c if c.isprintable() or c.isspace() or ord(c) > 159 else " " for c in cleaned).strip()
        if not cleaned:
            raise ValueError(f"{name} is empty" + (f" after clean-up: {text[:60]!r}" if text.strip() else ""))
        return self.text_prefix + cleaned

    @property
    def model_input_names(self) -> list[str]:
        """Keys that the model takes."""
        return ["pixel_values", "input_ids", "attention_mask", "image_index"]


__all__ = ["CCRkProcessor", "clean_caption"]
