"""What a batch tells of the samples that are packed into its rows."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ted_stream.pruning.batches import batch_size, map_tensors, targets_of
from ted_stream.pruning.predictions import IGNORE_INDEX
from ted_stream.pruning.segments import Segments

__all__ = ["segments_of", "unpacked"]


def segments_of(batch: Any, samples: int) -> Segments | None:
    """How the samples of a batch share its rows; ``None`` where every sample has a row of its own.

    Told by the first of these entries of the batch that is there: ``sequence_id`` or ``seq_idx``, (R, S), a number for
    each sample of a row, below 0 for padding; ``position_ids``, (R, S), 0 at each sample's first token;
    ``cu_seq_lens_q`` or ``cu_seqlens``, (n + 1,), where samples begin and the last ends, of a batch of one row.
    Tokens whose ``attention_mask``, (R, S), is 0 are padding.

    A batch with a row for each sample, whose rows hold several segments each, was made of samples that were packed
    before: there the row is the sample. Rows of padding hold none.

    Args:
        batch: whole, as it comes from the loader; what tells of segments is looked at, which waits for its device.
        samples: n that were read for it, in the order of their segments, row by row.

    Raises:
        ValueError: if the batch tells of segments, and neither they nor the rows are as many as the samples, or a row
            begins within one; or if ends of samples are not those of one row.
    """
    if not isinstance(batch, Mapping):
        return None
    rows = batch_size(batch)
    told = _starts(batch, rows, None if rows == samples else _named_ends(batch, rows))
    if told is None:
        return None
    starts, tokens = told
    counts = starts.sum(1)
    cut = (tokens & (tokens.cumsum(1) == 1) & ~starts).any(1).nonzero().flatten().tolist()
    if cut or counts.sum() != samples:
        if rows == samples:
            return None
        if cut:
            raise ValueError(
                f"Row {cut[0]} of the batch does not begin with the first token of a sample (a position of 0), so it "
                "is not known whose its first tokens are. Let the collate function pack each sample whole, into one "
                "row."
            )
        raise ValueError(
            f"The batch has {rows} rows with {int(counts.sum())} sequences packed into them, but {samples} "
            "samples were read for it, so it is not known whose they are. Let the collate function pack each sample "
            "whole, once and in order, without tokens behind the last one (pad_to_multiple_of). Of a dataset that was "
            "packed before (TRL's packing=True) a packed row is a sample: train on one to a batch "
            "(per_device_train_batch_size=1), or have batches packed instead (packing=False, padding_free=True)."
        )
    if (counts == 1).all():
        return None
    places = starts.flatten().cumsum(0).view(starts.shape) - 1
    owners = places.where(tokens, samples)
    borders = owners.diff(dim=1, prepend=owners[:, :1]) != 0
    return Segments.of(owners, counts, joined=_has_targets(batch, borders))


def unpacked(batch: Any, segments: Segments) -> Any:
    """The batch with a row per sample, (n, L, …), zeros behind; of tensors without (R, S) tokens nothing is left."""

    def rows_of(tensor: Tensor) -> Tensor:
        if tensor.shape[:2] != segments.owners.shape:
            return tensor.new_empty(0)
        tokens = tensor.flatten(0, 1)[segments.tokens.to(tensor.device)]
        return pad_sequence(list(tokens.split(segments.lengths.tolist())), batch_first=True)

    return map_tensors(batch, rows_of)


def _named_ends(batch: Mapping[str, Any], rows: int) -> str | None:
    """The entry that holds where samples begin and the last ends, (n + 1,), if there is one."""
    for name in ("cu_seq_lens_q", "cu_seqlens"):
        ends, inputs = batch.get(name), batch.get("input_ids")
        if not isinstance(ends, Tensor) or not isinstance(inputs, Tensor):
            continue
        if ends.ndim == 1 and inputs.ndim == 2 and len(inputs) == rows:
            if rows > 1:
                raise ValueError(
                    f"The batch has {name!r} and {rows} rows with samples packed into them; parts of it would keep all "
                    f"of {name!r}, and attention would take others' borders for theirs. Let the collate function pack "
                    "into one row, or tell of samples by 'position_ids' or 'sequence_id' alone."
                )
            return name
    return None


def _starts_of_ends(batch: Mapping[str, Any], name: str) -> Tensor:
    """(1, S) whether a token is its sample's first, on the CPU."""
    tokens, ends = batch["input_ids"].shape[1], batch[name].tolist()
    if len(ends) < 2 or ends[0] != 0 or ends[-1] != tokens or sorted(set(ends)) != ends:
        raise ValueError(
            f"{name!r} of the batch is {ends if len(ends) < 9 else [*ends[:4], ..., *ends[-4:]]}, but must ascend from "
            f"0 to {tokens}, the tokens of the row. Let the collate function pack nothing but whole samples, without "
            "tokens behind the last one (pad_to_multiple_of)."
        )
    starts = torch.zeros(1, tokens, dtype=torch.bool)
    starts[0, ends[:-1]] = True
    return starts


def _starts(batch: Mapping[str, Any], rows: int, ends: str | None) -> tuple[Tensor, Tensor] | None:
    """(R, S) whether a token is its sample's first, and whether it is one and no padding, on the CPU."""

    def entry(name: str) -> Tensor | None:
        tensor = batch.get(name)
        if not isinstance(tensor, Tensor) or tensor.ndim != 2 or len(tensor) != rows:
            return None
        return tensor.cpu()

    def no_padding(like: Tensor) -> Tensor:
        attended = entry("attention_mask")
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
    if ends is None:
        return None
    starts = _starts_of_ends(batch, ends)
    return starts, torch.ones_like(starts)


def _has_targets(batch: Any, places: Tensor) -> bool:
    """Whether any of these places, (R, S), has a target."""
    try:
        targets = targets_of(batch).cpu()
    except ValueError:
        return False
    return targets.shape == places.shape and bool((places & (targets != IGNORE_INDEX)).any())
