"""A byte-level GPT of about one million parameters, in plain torch."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VOCABULARY = 256  # a token is a byte


@dataclass(frozen=True)
class Shape:
    """Sizes of a `GPT`; the defaults give 1.0 million parameters."""

    context: int = 128
    width: int = 128
    heads: int = 4
    layers: int = 5


class Attention(nn.Module):
    """Causal self-attention over `[batch, time, width]`."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.qkv = nn.Linear(shape.width, 3 * shape.width, bias=False)
        self.out = nn.Linear(shape.width, shape.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Mix each position with those before it."""
        batch, time, width = x.shape
        q, k, v = self.qkv(x).view(batch, time, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(mixed.transpose(1, 2).reshape(batch, time, width))  # type: ignore[no-any-return]


class Block(nn.Module):
    """One transformer layer, normalized before each half."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(shape.width)
        self.attention = Attention(shape)
        self.norm2 = nn.LayerNorm(shape.width)
        self.up = nn.Linear(shape.width, 4 * shape.width, bias=False)
        self.down = nn.Linear(4 * shape.width, shape.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Add attention, then the two-layer network, to the stream `x`."""
        x = x + self.attention(self.norm1(x))
        return x + self.down(F.gelu(self.up(self.norm2(x))))  # type: ignore[no-any-return]


class GPT(nn.Module):
    """Next-byte model: `[batch, time]` int64 to `[batch, time, 256]` logits, through the embedding's own weights."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embedding = nn.Embedding(VOCABULARY, shape.width)
        self.position = nn.Parameter(torch.empty(shape.context, shape.width))
        self.blocks = nn.Sequential(*(Block(shape) for _ in range(shape.layers)))
        self.norm = nn.LayerNorm(shape.width)
        self.initialize()

    def initialize(self) -> None:
        """Draw the weights as GPT-2 does, wider as the model is narrower; what is added to the stream starts small."""
        spread = (3 * self.shape.width) ** -0.5
        added = spread / (2 * self.shape.layers) ** 0.5
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=added if name.endswith(("out.weight", "down.weight")) else spread)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of the byte that follows each position."""
        x = self.embedding(tokens) + self.position[: tokens.shape[1]]
        return F.linear(self.norm(self.blocks(x)), self.embedding.weight)

    def loss(self, windows: Tensor) -> Tensor:
        """Mean cross-entropy, in nats per byte, of `[batch, time + 1]` windows of text."""
        logits = self(windows[:, :-1])
        return F.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
