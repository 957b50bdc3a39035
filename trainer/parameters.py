"""Which parameters learn, at what rate, and which are decayed."""

from __future__ import annotations

import re

from torch import nn

NEW_LAYERS = ("crossattention", "_projection.", "itm_head.", "temperature", "logit_bias")


def is_new(name: str) -> bool:
    """Whether a parameter belongs to a part that pretrained towers do not have."""
    return any(part in name for part in NEW_LAYERS)


def choose_learning(model: nn.Module, parts: tuple[str, ...], patterns: list[str]) -> list[nn.Module]:
    """Leaves in training what should learn and can: not these parts, nor what is named so, nor what no loss reaches.

    Args:
        model: a CCRk model.
        parts: of it that do not learn.
        patterns: see `freeze_named`.

    Returns:
        The modules of the parts.
    """
    frozen = freeze(model, parts)
    freeze_named(model, patterns)
    freeze_unused(model)
    return frozen


def freeze(model: nn.Module, parts: tuple[str, ...]) -> list[nn.Module]:
    """Takes parts of a CCRk model out of training; returns them."""
    modules = [getattr(model.retriever, part) for part in parts]
    for module in modules:
        module.requires_grad_(False)
    return modules


def freeze_named(model: nn.Module, patterns: list[str]) -> None:
    """Takes parameters out of training in whose names one of the regular expressions is found.

    Raises:
        ValueError: if one is not a regular expression, or is found in no name.
    """
    names = dict(model.named_parameters())
    for pattern in patterns:
        try:
            found = [name for name in names if re.search(pattern, name)]
        except re.error as error:
            raise ValueError(f"freeze_parameters: '{pattern}' is not a regular expression: {error}") from error
        if not found:
            some = ", ".join(list(names)[:: max(1, len(names) // 5)][:5])
            raise ValueError(f"freeze_parameters: '{pattern}' is found in no parameter's name, such as {some}")
        for name in found:
            names[name].requires_grad_(False)


def freeze_unused(model: nn.Module) -> None:
    """Takes out of training what no loss of the configuration reaches.

    A parameter without a gradient makes distributed training wait for it, or leaves its neighbours unsynchronised.
    """
    config, retriever = model.config, model.retriever
    head = getattr(model, "mlm_head", None)
    masked = head is not None and config.mlm_weight
    if head is not None and not masked:
        tied = {id(parameter) for parameter in retriever.parameters()}
        for parameter in head.parameters():
            if id(parameter) not in tied:
                parameter.requires_grad_(False)
    if not config.matching_weight:
        retriever.itm_head.requires_grad_(False)
        if not masked:
            retriever.fusion_model.requires_grad_(False)
    if not config.contrastive_weight:
        for part in (retriever.visual_projection, retriever.text_projection):
            part.requires_grad_(False)
        retriever.temperature.requires_grad_(False)
        if retriever.logit_bias is not None:
            retriever.logit_bias.requires_grad_(False)


def decays(name: str, standard: set[str], rules: str) -> bool:
    """Whether weight decay applies to a parameter.

    Args:
        name: of the parameter.
        standard: names that the Trainer of transformers decays: no biases and no norms.
        rules: `standard`: these, less the temperature and the logit bias; `official`: by parts of names as in the
            authors' code, where all with "bias" are spared, but the temperature and the matching head's norm are not.
    """
    if rules == "official":
        return not any(part in name for part in ("bias", "LayerNorm", "layer_norm", ".norm"))
    return name in standard and not name.endswith(("temperature", "logit_bias"))
