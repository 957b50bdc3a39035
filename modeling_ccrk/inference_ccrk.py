"""Linear layers by oneDNN, and biases of Swin's windows kept, for passes without gradients on a CPU.

torch takes float32 products of matrices to another library than bfloat16 ones. oneDNN, which comes with it, is 10 to
20 % faster at the sizes of such layers where the processor has AVX-512, and applies a GELU to the result while it is
in cache. The operator is the one that torch's own compiler chooses for linear layers in inference; without the
compiler's minutes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn


def _available() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _packed(weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A weight as oneDNN wants it; float32 is taken as it lies, which costs a few per cent and no memory."""
    weight = weight.detach()
    return weight if dtype == torch.float32 else torch.ops.mkldnn._reorder_linear_weight(weight.to(dtype))


def _rounded(rows: int) -> int:
    """The number of rows that is computed in the place of another, at most a few per cent more.

    oneDNN keeps a kernel of about a megabyte for every shape that it has met, up to a thousand of them. Packed texts
    would be of another shape every time.
    """
    step = 8 if rows <= 64 else 32 if rows <= 512 else 64
    return -(-rows // step) * step


def _linear(weight: torch.Tensor, bias: torch.Tensor | None, after: str, states: torch.Tensor) -> torch.Tensor:
    flat = states.reshape(-1, states.shape[-1])
    rows = len(flat)
    if rows != _rounded(rows):
        padded = flat.new_zeros((_rounded(rows), flat.shape[1]), dtype=weight.dtype)
        padded[:rows] = flat
        flat = padded
    product = torch.ops.mkldnn._linear_pointwise(flat.to(weight.dtype), weight, bias, after, [], "none")[:rows]
    return product.view(*states.shape[:-1], product.shape[-1])


# feed-forward networks whose first layer's output goes to a GELU and nowhere else: class -> names of the two
_FEED_FORWARD = {"Mlp": ("fc1", "act"), "CCRkIntermediate": ("dense", "activation")}


def _is_gelu(module: nn.Module) -> bool:
    exact = isinstance(module, nn.GELU) and module.approximate == "none"
    return exact or getattr(module, "act", None) is nn.functional.gelu


def _gelu_after(module: nn.Module) -> dict[nn.Module, nn.Module]:
    """Linear layer -> the GELU that its output goes to."""
    found = {}
    for part in module.modules():
        names = _FEED_FORWARD.get(type(part).__name__)
        if names is None:
            continue
        layer, activation = names
        if _is_gelu(getattr(part, activation)):
            found[getattr(part, layer)] = getattr(part, activation)
    return found


ENCODERS = ("vision_model", "visual_projection", "text_model", "text_projection", "fusion_model", "itm_head")
"""Parts of a `CCRkModel`."""


@contextmanager
def fast_passes(model: nn.Module, parts: Sequence[str] = ENCODERS, *, bf16: bool = False) -> Iterator[None]:
    """Within it, passes without gradients take the fastest plain way that the model's device has.

    On a CPU that is `fast_inference`; elsewhere autocast alone.

    Args:
        model: a CCRk model, whose weights must not change meanwhile.
        parts: names of the retriever's modules that are to be run.
        bf16: compute in bfloat16, by autocast.
    """
    modules = [getattr(model.retriever, part) for part in parts]
    dtype = torch.bfloat16 if bf16 else torch.float32
    with fast_inference(*modules, dtype=dtype), torch.autocast(model.device.type, torch.bfloat16, enabled=bf16):
        yield


@contextmanager
def fast_inference(*modules: nn.Module, dtype: torch.dtype = torch.float32) -> Iterator[None]:
    """Within it, linear layers of float32 models on a CPU go through oneDNN; elsewhere nothing changes.

    The position biases of Swin's windows are added to their masks once and not for every image, which costs
    megabytes: 80 MiB for a Swin-B at 384 px.

    Results differ from those of plain layers by rounding. Gradients do not pass. While it is in force, no other
    thread may train the model, and its weights must not change.

    Args:
        *modules: whose layers; those of other types than `nn.Linear` itself are left alone.
        dtype: of the products: float32, or bfloat16, for which each weight is kept a second time.
    """
    layers = [layer for module in modules for layer in module.modules() if _takes(layer)]
    gelu = {layer: after for module in modules for layer, after in _gelu_after(module).items()}
    changed = []
    try:
        for window in (part for module in modules for part in module.modules() if _is_window(part)):
            window.forward = partial(_attend_in_windows, window, {})
            changed.append(window)
        for layer in layers:
            activation = gelu.get(layer)
            bias = None if layer.bias is None else layer.bias.detach().to(dtype)
            after = "none" if activation is None else "gelu"
            layer.forward = partial(_linear, _packed(layer.weight, dtype), bias, after)
            changed.append(layer)
            if activation is not None:
                activation.forward = _unchanged
                changed.append(activation)
        yield
    finally:
        for module in changed:
            del module.forward


def _takes(module: nn.Module) -> bool:
    """Whether a module is a layer that can be taken over, and nobody else has."""
    if type(module) is not nn.Linear or "forward" in vars(module) or not _available():
        return False
    return module.weight.device.type == "cpu" and module.weight.dtype == torch.float32


def _is_window(module: nn.Module) -> bool:
    """Whether a module is an attention of timm's Swin on a CPU that nobody else has taken over."""
    kind = type(module)
    if (kind.__name__, kind.__module__) != ("WindowAttention", "timm.models.swin_transformer"):
        return False
    return "forward" not in vars(module) and module.relative_position_bias_table.device.type == "cpu"


def _attend_in_windows(window: nn.Module, kept: dict, states: torch.Tensor, mask: torch.Tensor | None = None):
    """Attention within windows (B windows of an image, N, C), the windows of an image side by side.

    Args:
        window: timm's module.
        kept: of it, dtype -> its biases with the mask added.
        states: (B x windows, N, C).
        mask: (windows, N, N), always the same.
    """
    count, length, _ = states.shape
    qkv = window.qkv(states).reshape(count, length, 3, window.num_heads, -1)
    queries, keys, values = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    bias = kept.get(queries.dtype)
    if bias is None:
        bias = window._get_rel_pos_bias()
        bias = (bias if mask is None else bias + mask[:, None]).to(queries.dtype)
        kept[queries.dtype] = bias
    if len(bias) not in (1, count):  # those of one image need no copy
        bias = bias.repeat(count // len(bias), 1, 1, 1)
    attended = nn.functional.scaled_dot_product_attention(queries, keys, values, attn_mask=bias)
    return window.proj(attended.transpose(1, 2).reshape(count, length, -1))


def _unchanged(states: torch.Tensor) -> torch.Tensor:
    return states
