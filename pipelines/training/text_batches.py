"""From token samples to a padded batch, and what is counted of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import default_collate

from ted_stream.engine import ProgressLike, Ranks

from ..corpora.instructions import IGNORED
from ..corpora.tokens import read_lengths
from .settings import Settings

__all__ = ["PaddingCollator", "count_targets", "count_tokens", "progress_of", "token_factors"]


@dataclass(frozen=True)
class PaddingCollator:
    """Pad dict samples on the right to the longest of the batch.

    Attributes:
        pad_id: the token that fills ``input_ids``; ``labels`` of tokens are filled with -100, ``token_type_ids`` and
            ``attention_mask`` with 0.

    Raises:
        TypeError: ``pad_id`` is no number, as it is of a tokenizer that has no token for padding.
    """

    pad_id: int

    def __post_init__(self) -> None:
        if not isinstance(self.pad_id, (int, np.integer)) or isinstance(self.pad_id, bool):
            raise TypeError(
                f"pad_id is {self.pad_id!r}, but must be the number of a token. Where the tokenizer has none for "
                "padding take eos_token_id, or pad_id of the prepared dataset: read_description(path).pad_id."
            )

    def __call__(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Make a batch.

        Args:
            samples: each with ``input_ids`` (n,) and ``labels``, one per token, (n,), or one of the sample: a class or
                a score; perhaps with ``token_type_ids`` (n,). Entries that are not known here, such as ``sample_id``,
                are collated as torch does by default.

        Returns:
            ``input_ids``, ``attention_mask`` and the others of one value per token, (samples, longest) int64; labels
            of samples, (samples,) int64 classes or float32 scores; and the other entries.

        Raises:
            ValueError: a sample has another number of these values than of tokens.
        """
        lengths = [len(sample["input_ids"]) for sample in samples]
        mask = np.arange(max(lengths)) < np.array(lengths)[:, None]
        batch: dict[str, Any] = {"attention_mask": torch.from_numpy(mask.astype(np.int64))}
        for name, fill in {"input_ids": self.pad_id, "labels": IGNORED, "token_type_ids": 0}.items():
            if np.ndim(samples[0].get(name, 0)):
                padded = np.full(mask.shape, fill, np.int64)
                for row, (sample, length) in enumerate(zip(samples, lengths, strict=True)):
                    if len(sample[name]) != length:
                        raise ValueError(
                            f"sample {row} of a batch has {len(sample[name])} {name} and {length} input_ids; "
                            "a dataset of tokens needs one for each."
                        )
                    padded[row, :length] = sample[name]
                batch[name] = torch.from_numpy(padded)
        if "labels" not in batch:
            of_samples = np.array([sample["labels"] for sample in samples])
            is_score = of_samples.dtype.kind == "f"
            batch["labels"] = torch.from_numpy(of_samples.astype(np.float32 if is_score else np.int64))
        for name in samples[0].keys() - batch.keys():
            batch[name] = default_collate([sample[name] for sample in samples])
        return batch


def count_tokens(batch: Any) -> int:
    """The tokens of a batch, padding apart; 0 of what has none."""
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    return 0 if mask is None else int(mask.sum())


def count_targets(batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """(rows,) int64: of each row of a language model's batch the targets that its loss is a mean over."""
    return batch["labels"][:, 1:].ne(IGNORED).sum(1)  # nothing predicts the first token


def token_factors(batch: Mapping[str, torch.Tensor], ranks: Ranks) -> Callable[[slice], float]:
    """By what the mean over some rows' targets counts, beside the rows' share of the batch: all targets count alike.

    Of the batches of all ranks, over which gradients are averaged; collective.

    Args:
        batch: this rank's, of a language model.
        ranks: that share the step.
    """
    counts = count_targets(batch)
    (targets,) = ranks.communicator.all_reduce_sum(np.array([int(counts.sum())])).tolist()
    rows_of_ranks = len(counts) * ranks.world_size
    # One division, so that all rows of a single rank count by exactly 1.
    return lambda rows: int(counts[rows].sum()) * rows_of_ranks / (max(1, targets) * (rows.stop - rows.start))


def progress_of(settings: Settings) -> ProgressLike | None:
    """By what the learning rate comes on: as the settings say, where tokens are the lengths of the training samples.

    Raises:
        ValueError: the lengths cannot be read.
    """
    progress = settings.pruning.progress
    return read_lengths(settings.data.path, "train") if progress == "tokens" else progress
