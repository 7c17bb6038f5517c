"""A small Llama of which an adapter alone is trained, for the timing of a step."""

from __future__ import annotations

from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

__all__ = ["AdaptedLlama"]

_RANK = 8


class _Adapted(nn.Module):
    """A frozen layer and two matrices beside it (LoRA: Hu et al. 2021)."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer
        self.down = nn.Linear(layer.in_features, _RANK, bias=False)
        self.up = nn.Linear(_RANK, layer.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(…, D) to (…, D)."""
        return self.layer(x) + self.up(self.down(x))


class AdaptedLlama(nn.Module):
    """Llama's architecture with LoRA of rank 8 at every query and value; all else is frozen, the embeddings too.

    Args:
        vocabulary: number of tokens.
        max_length: longest sequence.
        layers: blocks.
        width: a multiple of 64, for as many heads.
    """

    shift_labels = False  # targets stand where they are predicted

    def __init__(self, *, vocabulary: int, max_length: int, layers: int, width: int) -> None:
        super().__init__()
        config = LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            intermediate_size=8 * width // 3,
            num_hidden_layers=layers,
            num_attention_heads=width // 64,
            max_position_embeddings=max_length,
            use_cache=False,
        )
        self.lm = LlamaForCausalLM(config).requires_grad_(False)
        for block in self.lm.model.layers:
            attention = block.self_attn
            for name in ("q_proj", "v_proj"):
                setattr(attention, name, _Adapted(getattr(attention, name)))

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, S, vocabulary) logits, from (B, S) tokens."""
        return self.lm(input_ids=tokens).logits
