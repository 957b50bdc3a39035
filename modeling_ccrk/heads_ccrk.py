"""Heads of CCRk: projections to the shared space, matching, masked language; and how a text is summed up."""

from __future__ import annotations

import torch
from torch import nn
from transformers.activations import ACT2FN

from .configuration_ccrk import CCRkConfig
from .draws_ccrk import Draws, dropout


class CCRkDefaultLinear(nn.Linear):
    """A linear layer that starts at torch's default, uniform within 1 / sqrt(fan in), as the authors' heads do."""


class CCRkProjection(nn.Sequential):
    """Projection of a summary to the shared space: linear, or with one hidden layer; in training with dropout."""

    def __init__(self, in_features: int, config: CCRkConfig):
        hidden = config.projection_hidden_size
        if hidden is None:
            super().__init__(CCRkDefaultLinear(in_features, config.projection_dim))
        else:
            super().__init__(
                CCRkDefaultLinear(in_features, hidden), nn.GELU(), CCRkDefaultLinear(hidden, config.projection_dim)
            )
        self.dropout = config.projection_dropout

    def forward(self, states: torch.Tensor, draws: Draws | None = None) -> torch.Tensor:
        """Projects (N, in_features) to (N, projection_dim), dropping features before each linear layer."""
        for number, layer in enumerate(self):
            if isinstance(layer, nn.Linear):
                states = dropout(states, self.dropout, self.training, draws, 200 + number)
            states = layer(states)
        return states


class CCRkMatchingHead(nn.Sequential):
    """Image-text matching head: logits (N, 2), class 1 = match."""

    def __init__(self, hidden_size: int):
        super().__init__(
            CCRkDefaultLinear(hidden_size, 2 * hidden_size),
            nn.LayerNorm(2 * hidden_size),
            nn.GELU(),
            CCRkDefaultLinear(2 * hidden_size, 2),
        )


class CCRkLMHead(nn.Module):
    """Masked-language head; its decoder is tied to the word embeddings."""

    def __init__(self, config: CCRkConfig):
        super().__init__()
        text = config.text_config
        self.dense = nn.Linear(text.hidden_size, text.hidden_size)
        self.activation = ACT2FN["gelu"]
        self.layer_norm = nn.LayerNorm(text.hidden_size, eps=text.layer_norm_eps)
        self.decoder = nn.Linear(text.hidden_size, text.vocab_size)
        self.bias = nn.Parameter(torch.zeros(text.vocab_size))

    def forward(self, hidden_states: torch.Tensor, tied=None) -> torch.Tensor:
        """Logits (..., vocab_size) of hidden states (..., hidden); by `tied` words (N, hidden) alone."""
        states = self.layer_norm(self.activation(self.dense(hidden_states)))
        return self.decoder(states) if tied is None else tied.decode(states, self.decoder.bias)


def summarise(hidden_states: torch.Tensor, attention_mask: torch.Tensor | None, pooling: str) -> torch.Tensor:
    """One vector (N, hidden) for each text (N, L, hidden): its first token, or the mean over its real tokens."""
    if pooling == "first":
        return hidden_states[:, 0]
    if attention_mask is None:
        return hidden_states.mean(1)
    mask = attention_mask.unsqueeze(-1).to(hidden_states.dtype)
    return (hidden_states * mask).sum(1) / mask.sum(1).clamp(min=1)
