"""What a batch tells of the samples that are packed into its rows."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ted_stream.pruning.batches import batch_size, map_tensors, targets_of
from ted_stream.pruning.predictions import IGNORE_INDEX
from ted_stream.pruning.segments import Segments

__all__ = ["segments_of", "unpacked"]


def segments_of(batch: Any, samples: int) -> Segments | None:
    """How the samples of a batch share its rows; ``None`` where every sample has a row of its own.

    Told by the first of these entries of the batch that is there: ``sequence_id`` or ``seq_idx``, (R, S), a number for
    each sample of a row, below 0 for padding; ``position_ids``, (R, S), 0 at each sample's first token;
    ``cu_seq_lens_q`` or ``cu_seqlens``, (n + 1,), where samples begin and the last ends, rows one after the other.
    Tokens whose ``attention_mask``, (R, S), is 0 are padding.

    A batch with a row for each sample, whose rows hold several segments each, was made of samples that were packed
    before: there the row is the sample.

    Args:
        batch: whole, as it comes from the loader; what tells of it is looked at, which waits for its device.
        samples: n that were read for it, in the order of their segments, row by row.

    Raises:
        ValueError: if the batch tells of segments, and neither they nor the rows are as many as the samples.
    """
    told = _starts(batch)
    if told is None:
        return None
    starts, tokens = told
    counts = starts.sum(1)
    if counts.sum() != samples:
        if len(counts) == samples:
            return None
        raise ValueError(
            f"The batch has {len(counts)} rows with {int(counts.sum())} sequences packed into them, but {samples} "
            "samples were read for it, so it is not known whose they are. Let the collate function pack each sample "
            "whole, once and in order, without tokens behind the last one (pad_to_multiple_of). Of a dataset that was "
            "packed before (TRL's packing=True) a packed row is a sample: train on one to a batch "
            "(per_device_train_batch_size=1), or have batches packed instead (packing=False, padding_free=True)."
        )
    if (counts == 1).all():
        return None
    places = starts.flatten().cumsum(0).view(starts.shape) - 1
    owners = places.where(tokens, samples)
    later = starts & (places > (counts.cumsum(0) - counts)[:, None])
    return Segments.of(owners, counts, joined=_has_targets(batch, later))


def unpacked(batch: Any, segments: Segments) -> Any:
    """The batch with a row per sample, (n, L, …), zeros behind; of tensors without (R, S) tokens nothing is left."""

    def rows_of(tensor: Tensor) -> Tensor:
        if tensor.shape[:2] != segments.owners.shape:
            return tensor.new_empty(0)
        flat = tensor.flatten(0, 1)
        return torch.cat([flat, flat.new_zeros(1, *flat.shape[1:])])[segments.places.to(flat.device)]

    return map_tensors(batch, rows_of)


def _starts(batch: Any) -> tuple[Tensor, Tensor] | None:
    """(R, S) whether a token is its sample's first, and whether it is one and no padding, on the CPU."""
    if not isinstance(batch, Mapping):
        return None
    rows = batch_size(batch)

    def entry(name: str) -> Tensor | None:
        tensor = batch.get(name)
        if not isinstance(tensor, Tensor) or tensor.ndim != 2 or len(tensor) != rows:
            return None
        return tensor.cpu()

    attended = entry("attention_mask")

    def no_padding(like: Tensor) -> Tensor:
        if attended is None or attended.shape != like.shape:
            return torch.ones_like(like, dtype=torch.bool)
        return attended.ne(0)

    for name in ("sequence_id", "seq_idx"):
        if (numbers := entry(name)) is not None:
            tokens = no_padding(numbers) & (numbers >= 0)
            numbers = numbers.where(tokens, -1)
            return tokens & (numbers != F.pad(numbers, (1, 0), value=-1)[:, :-1]), tokens
    if (positions := entry("position_ids")) is not None:
        tokens = no_padding(positions)
        return tokens & (positions == 0), tokens
    for name in ("cu_seq_lens_q", "cu_seqlens"):
        ends, inputs = batch.get(name), entry("input_ids")
        if isinstance(ends, Tensor) and ends.ndim == 1 and inputs is not None:
            starts = torch.zeros(inputs.numel() + 1, dtype=torch.bool)
            starts[ends.cpu().long()] = True
            return starts[:-1].view(inputs.shape), torch.ones_like(inputs, dtype=torch.bool)
    return None


def _has_targets(batch: Any, places: Tensor) -> bool:
    """Whether any of these places, (R, S), has a target."""
    try:
        targets = targets_of(batch).cpu()
    except ValueError:
        return False
    return targets.shape == places.shape and bool((places & (targets != IGNORE_INDEX)).any())
