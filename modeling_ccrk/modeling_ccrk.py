"""CCRk models: [`CCRkModel`] retrieves and matches, [`CCRkForPreTraining`] adds the masked-language head."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from .configuration_ccrk import CCRkConfig
from .draws_ccrk import Draws
from .heads_ccrk import CCRkLMHead, CCRkMatchingHead, CCRkProjection, summarise
from .image_tower_ccrk import CCRkImageTower
from .losses_ccrk import mlm_loss
from .objectives_ccrk import SingleProcess, add_losses, gather_batch, sampling_rules
from .pretrained_ccrk import CCRkPreTrainedModel
from .sampling_ccrk import MatchingPairs
from .text_layers_ccrk import CCRkFusionEncoder, CCRkImageStates, CCRkTextTower, trim_padding
from .tied_ccrk import CCRkTiedWords


@dataclass
class CCRkOutput(ModelOutput):
    """Output of [`CCRkModel`].

    Attributes:
        loss: weighted sum of the losses, with `return_loss=True`.
        loss_contrastive, loss_matching: the losses by themselves.
        logits_per_image: (B, T) similarities divided by the temperature.
        logits_per_text: (T, B) the same, transposed.
        image_embeds: (B, D) unit vectors.
        text_embeds: (T, D) unit vectors.
        image_hidden_states: (B, 1 + P, image width) tokens of the image tower.
        text_hidden_states: (T, L, hidden) tokens of the text tower.
    """

    loss: torch.Tensor | None = None
    loss_contrastive: torch.Tensor | None = None
    loss_matching: torch.Tensor | None = None
    logits_per_image: torch.Tensor | None = None
    logits_per_text: torch.Tensor | None = None
    image_embeds: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None
    image_hidden_states: torch.Tensor | None = None
    text_hidden_states: torch.Tensor | None = None


@dataclass
class CCRkForPreTrainingOutput(CCRkOutput):
    """Output of [`CCRkForPreTraining`]: as [`CCRkOutput`], with `loss_mlm`, the masked-language loss."""

    loss_mlm: torch.Tensor | None = None


def in_order(output: CCRkOutput) -> CCRkOutput:
    """The same output with its fields in the order of its class: as a tuple it begins with the loss."""
    return type(output)(**output)


class CCRkModel(CCRkPreTrainedModel):
    """Image tower, text tower and fusion encoder, with the projections and the matching head."""

    _keys_to_ignore_on_load_unexpected = [r"^mlm_head\."]

    def __init__(self, config: CCRkConfig):
        super().__init__(config)
        text = config.text_config
        self.vision_model = CCRkImageTower(config.vision_config)
        self.text_model = CCRkTextTower(text, config.num_text_layers, config.position_offset)
        self.fusion_model = CCRkFusionEncoder(
            text, config.num_fusion_layers, self.vision_model.hidden_size, config.fusion_image_norm
        )
        self.visual_projection = CCRkProjection(self.vision_model.hidden_size, config)
        self.text_projection = CCRkProjection(text.hidden_size, config)
        self.temperature = nn.Parameter(torch.tensor(float(config.temperature_init)))
        # only the sigmoid objective has one; other checkpoints stay as they are
        self.logit_bias = None
        if config.contrastive_variant == "sigmoid":
            self.logit_bias = nn.Parameter(torch.tensor(float(config.logit_bias_init)))
        self.itm_head = CCRkMatchingHead(text.hidden_size)
        self.post_init()

    def get_image_features(
        self,
        pixel_values: torch.Tensor | None = None,
        image_hidden_states: torch.Tensor | None = None,
        draws: Draws | None = None,
    ) -> BaseModelOutputWithPooling:
        """Embeds images.

        Args:
            pixel_values: (B, 3, H, W).
            image_hidden_states: (B, 1 + P, image width) in their place, computed before.
            draws: dropout by keys, one for each image.

        Returns:
            `pooler_output (B, D)`: unit vectors; `last_hidden_state`: tokens of the image tower.
        """
        if image_hidden_states is None:
            image_hidden_states = self.vision_model(pixel_values, draws)
        embeds = nn.functional.normalize(self.visual_projection(image_hidden_states[:, 0], draws), dim=-1)
        return BaseModelOutputWithPooling(last_hidden_state=image_hidden_states, pooler_output=embeds)

    def get_text_features(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        text_hidden_states: torch.Tensor | None = None,
        draws: Draws | None = None,
    ) -> BaseModelOutputWithPooling:
        """Embeds texts.

        Args:
            input_ids: (T, L).
            attention_mask: (T, L), 1 at real tokens; all are real without it.
            text_hidden_states: (T, L, hidden) in place of `input_ids`, computed before.
            draws: dropout by keys, one for each text.

        Returns:
            `pooler_output (T, D)`: unit vectors; `last_hidden_state`: tokens of the text tower.
        """
        if text_hidden_states is None:
            text_hidden_states = self.text_model(input_ids, attention_mask, draws)
        summary = summarise(text_hidden_states, attention_mask, self.config.text_pooling)
        embeds = nn.functional.normalize(self.text_projection(summary, draws), dim=-1)
        return BaseModelOutputWithPooling(last_hidden_state=text_hidden_states, pooler_output=embeds)

    def get_joint_features(
        self,
        pixel_values: torch.Tensor,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        text_weight: float = 0.5,
    ) -> BaseModelOutputWithPooling:
        """Embeds pairs of an image and a text, as the pipeline does with queries of both.

        Args:
            pixel_values: (N, 3, H, W).
            input_ids: (N, L), the text that belongs to each image.
            attention_mask: (N, L).
            text_weight: from 0 (the image alone) to 1 (the text alone).

        Returns:
            `pooler_output (N, D)`: unit vectors between those of the two.
        """
        images = self.get_image_features(pixel_values).pooler_output
        texts = self.get_text_features(input_ids, attention_mask).pooler_output
        joint = nn.functional.normalize((1 - text_weight) * images + text_weight * texts, dim=-1)
        return BaseModelOutputWithPooling(pooler_output=joint)

    def get_image_states(
        self, pixel_values: torch.Tensor | None = None, image_hidden_states: torch.Tensor | None = None
    ) -> CCRkImageStates:
        """What `match` needs of images, computed once: the keys and values of the fusion encoder.

        Args:
            pixel_values: (B, 3, H, W).
            image_hidden_states: (B, 1 + P, image width) in their place.
        """
        if image_hidden_states is None:
            image_hidden_states = self.vision_model(pixel_values)
        return self.fusion_model.image_states(image_hidden_states)

    def match_rows(
        self,
        image_states: CCRkImageStates,
        text_hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None,
        image_rows: torch.LongTensor,
        text_rows: torch.LongTensor,
        draws: Draws | None = None,
    ) -> torch.Tensor:
        """Matching logits (N, 2) of N pairs in one pass; every way to score pairs ends here."""
        first = self.config.fusion_pooling == "first"
        mask = None if attention_mask is None else attention_mask[text_rows]
        if _plain_only(self, draws, text_rows):
            hidden_states, mask = trim_padding(text_hidden_states[text_rows], mask)
            fused = self.fusion_model(hidden_states, mask, image_states, image_rows, draws, first_only=first)
        else:
            given = text_hidden_states, attention_mask, image_states, image_rows, text_rows
            fused = self.fusion_model.fuse_pairs(*given, first_only=first)
            mask = None if mask is None else mask[:, : fused.shape[1]]
        return self.itm_head(summarise(fused, mask, self.config.fusion_pooling))

    def match(
        self,
        pixel_values: torch.Tensor | None = None,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        *,
        image_states: CCRkImageStates | None = None,
        image_hidden_states: torch.Tensor | None = None,
        text_hidden_states: torch.Tensor | None = None,
        pairs: torch.LongTensor | None = None,
        batch_size: int = 64,
    ) -> torch.Tensor:
        """Scores images against texts by the fusion encoder.

        Args:
            pixel_values: (B, 3, H, W).
            input_ids: (T, L).
            attention_mask: (T, L).
            image_states: from `get_image_states`, in place of `pixel_values`.
            image_hidden_states: (B, 1 + P, image width) in place of `pixel_values`.
            text_hidden_states: (T, L, hidden) in place of `input_ids`.
            pairs: (N, 2) rows of images and texts. Without it every image is scored with every text.
            batch_size: pairs in one pass.

        Returns:
            Logits, class 1 = match: (N, 2) for pairs, (B, T, 2) without.

        Raises:
            ValueError: if a pair names an image or a text that is not there.
        """
        if image_states is None:
            image_states = self.get_image_states(pixel_values, image_hidden_states)
        if text_hidden_states is None:
            text_hidden_states = self.text_model(input_ids, attention_mask)
        num_images, num_texts, device = len(image_states), len(text_hidden_states), text_hidden_states.device
        if pairs is None:
            rows = torch.cartesian_prod(torch.arange(num_images), torch.arange(num_texts)).to(device).reshape(-1, 2)
        else:
            rows = torch.as_tensor(pairs, device=device).reshape(-1, 2)
            limits = torch.tensor([num_images, num_texts], device=device)
            if len(rows) and ((rows < 0) | (rows >= limits)).any():
                raise ValueError(
                    f"pairs name an image or a text beyond the {num_images} images and {num_texts} texts given"
                )
        if not len(rows):
            return text_hidden_states.new_zeros((0, 2))
        logits = torch.cat(
            [
                self.match_rows(image_states, text_hidden_states, attention_mask, part[:, 0], part[:, 1])
                for part in rows.split(batch_size)
            ]
        )
        return logits.reshape(num_images, num_texts, 2) if pairs is None else logits

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        image_index: torch.LongTensor | None = None,
        image_ids: torch.Tensor | None = None,
        image_hidden_states: torch.Tensor | None = None,
        text_hidden_states: torch.Tensor | None = None,
        text_weights: torch.Tensor | None = None,
        is_guide: torch.BoolTensor | None = None,
        draw_keys: torch.LongTensor | None = None,
        return_loss: bool | None = None,
        matching_pairs: MatchingPairs | None = None,
        negative_hardness: float = 1.0,
        matching_images: int | None = None,
        tiled: bool = False,
        lenient: bool = False,
        stand_in: bool = False,
        exchange: SingleProcess | None = None,
        **kwargs,
    ) -> CCRkOutput:
        """Embeds a batch of images and texts, and computes the losses of fine-tuning.

        Args:
            pixel_values: (B, 3, H, W).
            input_ids: (T, L).
            attention_mask: (T, L), 1 at real tokens.
            image_index: (T,) row of the image that each text describes; needed for a loss.
            image_ids: (B,) optional; images with equal ids are positives of each other's texts.
            image_hidden_states: (B, 1 + P, image width) in place of `pixel_values`, from a frozen image tower.
            text_hidden_states: (T, L, hidden) in place of `input_ids`, from a frozen text tower.
            text_weights: (T,) optional, how much each text counts as a positive; see `losses_ccrk.one_to_k`.
            is_guide: (T,) optional, true for the texts that guide the others (`english_guidance`).
            draw_keys: (B,) int64 optional: dropout and sampling become functions of them, see `draws_ccrk`.
            return_loss: adds contrastive and matching loss.
            matching_pairs: pairs for the matching loss; drawn from the batch by default.
            negative_hardness: see `sampling_ccrk.negative_weights`.
            matching_images: images of the batch that are matched, drawn at random; all by default.
            tiled: the contrastive loss never holds the similarities; `logits_per_image` and `logits_per_text` are
                left out.
            lenient: a batch in which nothing can be matched, as one of a single image, has a matching loss of 0
                instead of being an error.
            stand_in: this process has no batch of its own; what it is given takes part in the exchange with others
                and counts for nothing.
            exchange: with other processes, whose batches are parts of the same large one; losses are then this
                process's shares, which add up to those of the whole. See `ccrk.trainer.exchange`.
            **kwargs: ignored.

        Returns:
            [`CCRkOutput`].

        Raises:
            ValueError: if images or texts are missing, or a loss is asked for without `image_index`.
        """
        output, step = self.encode(
            pixel_values,
            input_ids,
            attention_mask,
            image_hidden_states,
            text_hidden_states,
            image_index=image_index if return_loss else None,
            labels={
                "image_ids": image_ids,
                "text_weights": text_weights,
                "is_guide": is_guide,
                "draw_keys": draw_keys,
                "exchange": exchange,
            },
            logits=not tiled,
            stand_in=stand_in,
        )
        if step is None and return_loss:
            check_image_index(image_index, len(output.image_embeds), len(output.text_embeds))
        if return_loss:
            rules = sampling_rules(self.config, negative_hardness, matching_images, lenient)
            add_losses(self, output, step, attention_mask, pairs=matching_pairs, rules=rules, tiled=tiled)
        return in_order(output)

    def add_logit_bias(self) -> None:
        """Gives the model the bias of the sigmoid objective, where its configuration asks for it and it has none."""
        if self.config.contrastive_variant == "sigmoid" and self.logit_bias is None:
            bias = torch.tensor(float(self.config.logit_bias_init))
            self.logit_bias = nn.Parameter(bias.to(self.temperature))

    def encode(
        self,
        pixel_values,
        input_ids,
        attention_mask,
        image_hidden_states=None,
        text_hidden_states=None,
        *,
        image_index: torch.LongTensor | None = None,
        labels: dict | None = None,
        logits: bool = True,
        stand_in: bool = False,
    ):
        """Both towers' output for a batch and, where `image_index` is given, what a step knows of it.

        Args:
            pixel_values: see `forward`, as the next four.
            input_ids: of texts.
            attention_mask: of texts.
            image_hidden_states: in place of `pixel_values`.
            text_hidden_states: in place of `input_ids`.
            image_index: (T,).
            labels: further arguments of `objectives_ccrk.gather_batch`.
            logits: whether to fill in the similarities.
            stand_in: encode, but leave nothing of it; what is left keeps every parameter in the graph.

        Returns:
            [`CCRkOutput`] and `objectives_ccrk.StepBatch` or None.
        """
        if pixel_values is None and image_hidden_states is None:
            raise ValueError("no images: pass pixel_values (or use get_text_features for texts alone)")
        if input_ids is None and text_hidden_states is None:
            raise ValueError("no texts: pass input_ids (or use get_image_features for images alone)")
        step = None
        if image_index is not None:
            num_images = len(pixel_values if image_hidden_states is None else image_hidden_states)
            num_texts = len(input_ids if text_hidden_states is None else text_hidden_states)
            check_image_index(image_index, num_images, num_texts)
            step = gather_batch(image_index, num_images, stand_in=stand_in, **(labels or {}))
        draws = (None, None) if step is None or stand_in else (step.image_draws(), step.text_draws())
        image = self.get_image_features(pixel_values, image_hidden_states, draws[0])
        text = self.get_text_features(input_ids, attention_mask, text_hidden_states, draws[1])
        output = CCRkOutput(
            image_embeds=image.pooler_output,
            text_embeds=text.pooler_output,
            image_hidden_states=image.last_hidden_state,
            text_hidden_states=text.last_hidden_state,
        )
        if stand_in:
            for name, value in output.items():
                output[name] = value[:0]
        if logits:
            similarities = image.pooler_output @ text.pooler_output.t() / self.temperature
            if self.logit_bias is not None:
                similarities = similarities + self.logit_bias
            output.logits_per_image, output.logits_per_text = similarities, similarities.t()
        return output, step


def _plain_only(model: nn.Module, draws: Draws | None, rows: torch.Tensor) -> bool:
    """Whether pairs are fused one by one: in training, in a graph, and on an accelerator, where small passes cost."""
    learns = model.training or draws is not None or torch.is_grad_enabled()
    return learns or rows.device.type != "cpu" or torch.compiler.is_compiling() or torch.jit.is_tracing()


def check_image_index(image_index: torch.Tensor | None, num_images: int, num_texts: int) -> torch.LongTensor:
    """Checks that `image_index` names an image of the batch for each text.

    Raises:
        ValueError: saying what is wrong with it.
    """
    if image_index is None:
        raise ValueError(
            "a loss needs image_index, which names the image of each text: give the processor nested captions "
            "(a list per image), or pass image_index (T,)"
        )
    if image_index.shape != (num_texts,):
        raise ValueError(f"image_index has shape {tuple(image_index.shape)}, but there are {num_texts} texts")
    if image_index.is_floating_point() or image_index.dtype == torch.bool:
        raise ValueError(f"image_index must hold whole numbers, not {image_index.dtype}")
    if num_texts and (image_index.min() < 0 or image_index.max() >= num_images):
        wrong = int(image_index.min() if image_index.min() < 0 else image_index.max())
        raise ValueError(f"image_index names image {wrong}, but the batch has {num_images} images")
    return image_index


class CCRkForPreTraining(CCRkPreTrainedModel):
    """[`CCRkModel`] with the masked-language head: all three losses of pre-training."""

    _tied_weights_keys = {
        "mlm_head.decoder.weight": "ccrk.text_model.embeddings.word_embeddings.weight",
        "mlm_head.decoder.bias": "mlm_head.bias",
    }
    _optional_weights = ("mlm_head.",)

    def __init__(self, config: CCRkConfig):
        super().__init__(config)
        self.ccrk = CCRkModel(config)
        self.mlm_head = CCRkLMHead(config)
        self.post_init()

    def get_output_embeddings(self) -> nn.Linear:
        """The decoder of the masked-language head."""
        return self.mlm_head.decoder

    def set_output_embeddings(self, value: nn.Linear) -> None:
        """Replaces the decoder of the masked-language head, its bias with it."""
        self.mlm_head.decoder = value
        if value.bias is not None:
            self.mlm_head.bias = value.bias

    def get_image_features(self, *args, **kwargs) -> BaseModelOutputWithPooling:
        """See [`CCRkModel.get_image_features`]."""
        return self.ccrk.get_image_features(*args, **kwargs)

    def get_text_features(self, *args, **kwargs) -> BaseModelOutputWithPooling:
        """See [`CCRkModel.get_text_features`]."""
        return self.ccrk.get_text_features(*args, **kwargs)

    def get_joint_features(self, *args, **kwargs) -> BaseModelOutputWithPooling:
        """See [`CCRkModel.get_joint_features`]."""
        return self.ccrk.get_joint_features(*args, **kwargs)

    def match(self, *args, **kwargs) -> torch.Tensor:
        """See [`CCRkModel.match`]."""
        return self.ccrk.match(*args, **kwargs)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        image_index: torch.LongTensor | None = None,
        image_ids: torch.Tensor | None = None,
        masked_input_ids: torch.LongTensor | None = None,
        mlm_labels: torch.LongTensor | None = None,
        image_hidden_states: torch.Tensor | None = None,
        text_hidden_states: torch.Tensor | None = None,
        text_weights: torch.Tensor | None = None,
        is_guide: torch.BoolTensor | None = None,
        draw_keys: torch.LongTensor | None = None,
        return_loss: bool | None = None,
        matching_pairs: MatchingPairs | None = None,
        negative_hardness: float = 1.0,
        matching_images: int | None = None,
        tiled: bool = False,
        lenient: bool = False,
        stand_in: bool = False,
        exchange: SingleProcess | None = None,
        **kwargs,
    ) -> CCRkForPreTrainingOutput:
        """As [`CCRkModel.forward`], with the masked-language loss.

        Args:
            pixel_values: (B, 3, H, W).
            input_ids: (T, L).
            attention_mask: (T, L).
            image_index: (T,).
            image_ids: (B,) optional.
            masked_input_ids: (T, L) texts with masked tokens.
            mlm_labels: (T, L) the original ids at masked positions, -100 elsewhere. The loss is computed for the
                positive text of each image, with the image.
            image_hidden_states: (B, 1 + P, image width) in place of `pixel_values`.
            text_hidden_states: (T, L, hidden) in place of `input_ids`.
            text_weights: (T,) optional.
            is_guide: (T,) optional.
            draw_keys: (B,) optional.
            return_loss: adds the losses; by default where `image_index` is given.
            matching_pairs: pairs for matching; drawn from the batch by default.
            negative_hardness: see `sampling_ccrk.negative_weights`.
            matching_images: images of the batch that are matched and unmasked.
            tiled: see [`CCRkModel.forward`], as the next three.
            lenient: whether a batch may have nothing to match.
            stand_in: whether what is given counts for nothing.
            exchange: with other processes.
            **kwargs: ignored.

        Returns:
            [`CCRkForPreTrainingOutput`].

        Raises:
            ValueError: as [`CCRkModel.forward`], or if the masked-language loss is on and masked texts are missing.
        """
        if return_loss is None:
            return_loss = image_index is not None
        if return_loss:
            self.clamp_temperature()
        embeddings = self.ccrk.text_model.embeddings
        decodes = return_loss and self.config.mlm_weight
        embeddings.tied = CCRkTiedWords.of(embeddings.word_embeddings, self.mlm_head.decoder) if decodes else None
        base, step = self.ccrk.encode(
            pixel_values,
            input_ids,
            attention_mask,
            image_hidden_states,
            text_hidden_states,
            image_index=image_index if return_loss else None,
            labels={
                "image_ids": image_ids,
                "text_weights": text_weights,
                "is_guide": is_guide,
                "draw_keys": draw_keys,
                "exchange": exchange,
            },
            logits=not tiled,
            stand_in=stand_in,
        )
        output = CCRkForPreTrainingOutput(**base)
        if not return_loss:
            return output
        if step is None:
            check_image_index(image_index, len(output.image_embeds), len(output.text_embeds))
        if not self.config.mlm_weight:
            masked_input_ids = mlm_labels = None
        elif masked_input_ids is None or mlm_labels is None:
            raise ValueError(
                "the masked-language loss needs masked_input_ids and mlm_labels (see masking_ccrk.mask_tokens); "
                "set mlm_weight=0 in the configuration to train without it"
            )
        add_losses(
            self,
            output,
            step,
            attention_mask,
            pairs=matching_pairs,
            rules=sampling_rules(self.config, negative_hardness, matching_images, lenient),
            masked_input_ids=masked_input_ids,
            mlm_labels=mlm_labels,
            tiled=tiled,
        )
        return in_order(output)

    def clamp_temperature(self) -> None:
        """Brings the temperature back into `temperature_range`, as the authors do before every step."""
        if self.config.temperature_range is not None:
            with torch.no_grad():
                self.ccrk.temperature.clamp_(*self.config.temperature_range)

    def mlm_hidden_states(
        self, masked_input_ids, attention_mask, image_states, image_rows=None, draws: Draws | None = None
    ) -> torch.Tensor:
        """Output of all layers (N, L, hidden) for masked texts with their images."""
        hidden_states = self.ccrk.text_model(masked_input_ids, attention_mask, draws)
        return self.ccrk.fusion_model(hidden_states, attention_mask, image_states, image_rows, draws)

    def masked_language_loss(
        self,
        masked_input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None,
        labels: torch.LongTensor,
        image_states: CCRkImageStates,
        image_rows: torch.LongTensor,
        *,
        draws: Draws | None = None,
        total: int | None = None,
    ) -> torch.Tensor:
        """Masked-language loss of texts (N, L) with the images `image_rows (N,)`; the head sees masked tokens only.

        With `total`, the sum over masked tokens divided by it.
        """
        masked_input_ids, trimmed = trim_padding(masked_input_ids, attention_mask)
        embeddings = self.ccrk.text_model.embeddings
        if embeddings.tied is None:  # called by itself, as by a gradient cache
            embeddings.tied = CCRkTiedWords.of(embeddings.word_embeddings, self.mlm_head.decoder)
        hidden_states = self.mlm_hidden_states(masked_input_ids, trimmed, image_states, image_rows, draws)
        labels = labels[:, : masked_input_ids.shape[1]]
        masked = labels != -100
        tied, embeddings.tied = embeddings.tied, None  # the last use in this batch
        return mlm_loss(self.mlm_head(hidden_states[masked], tied), labels[masked], total)


__all__ = ["CCRkForPreTraining", "CCRkForPreTrainingOutput", "CCRkModel", "CCRkOutput"]
