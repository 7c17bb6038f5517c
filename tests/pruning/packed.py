"""A causal language model that takes packed rows, with attention within samples, and samples packed into rows."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from trainer import CausalLM, tokens


class PackedLM(CausalLM):
    """Small GPT-2 whose tokens attend to those of their own sample alone: a mask made of the positions."""

    def forward(self, batch: dict[str, Tensor]) -> Any:
        positions = batch["position_ids"]
        of = (positions == 0).cumsum(1)
        attends = (of[:, :, None] == of[:, None, :]).tril()
        return self.lm(input_ids=batch["input_ids"], position_ids=positions, attention_mask=attends[:, None])


def packed_lm() -> PackedLM:
    """The same weights, in float64, at every call."""
    torch.manual_seed(0)
    return PackedLM().double()


def samples(count: int) -> list[dict[str, Tensor]]:
    """Of unequal length, with prompts whose labels are -100; whatever the first token's label, nothing predicts it."""
    batch = tokens(count)
    return [{name: batch[name][row][batch["attention_mask"][row] == 1] for name in batch} for row in range(count)]


def pack(rows: Sequence[Sequence[dict[str, Tensor]]], *, room: int | None = None) -> dict[str, Tensor]:
    """Rows of samples one behind the other, padded to the longest, or to so many tokens."""
    length = room or max(sum(len(sample["labels"]) for sample in row) for row in rows)
    names = ("input_ids", "labels", "attention_mask", "position_ids")
    batch = {name: torch.full((len(rows), length), -100 if name == "labels" else 0) for name in names}
    for at, row in enumerate(rows):
        start = 0
        for sample in row:
            part = slice(start, start + len(sample["labels"]))
            for name in sample:
                batch[name][at, part] = sample[name]
            batch["labels"][at, start] = -100
            batch["position_ids"][at, part] = torch.arange(len(sample["labels"]))
            start = part.stop
    return batch
