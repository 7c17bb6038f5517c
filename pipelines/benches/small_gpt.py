"""A GPT in plain torch, so that a step of one can be timed where nothing else is installed."""

from __future__ import annotations

from torch import Tensor, arange, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

__all__ = ["SmallGPT"]


class _Block(nn.Module):
    """Causal attention and a perceptron, each after a norm and added to its input."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_perceptron = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.mixed = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, S, D) to (B, S, D)."""
        q, k, v = self.qkv(self.before_attention(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.mixed(attended.transpose(1, 2).flatten(2))
        return x + self.narrow(gelu(self.wide(self.before_perceptron(x))))


class SmallGPT(nn.Module):
    """GPT-2's architecture without dropout, with a head of its own.

    Args:
        vocabulary: number of tokens.
        max_length: longest sequence.
        layers: blocks.
        heads: of attention, per block.
        width: a multiple of ``heads``.
    """

    def __init__(self, *, vocabulary: int, max_length: int, layers: int, heads: int, width: int) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(max_length, width)
        self.blocks = nn.Sequential(*(_Block(width, heads) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, S, vocabulary) logits of the next token, from (B, S) tokens."""
        places = arange(tokens.shape[1], device=tokens.device)
        return self.head(self.norm(self.blocks(self.tokens(tokens) + self.positions(places))))
