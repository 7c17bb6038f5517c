"""What methods that choose a set of a given size share: the classes' predictions, ties, and scores of an order."""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ted_stream.methods.static.static_method import Recorded, ScoredBatch
from ted_stream.pruning.hashing import hash_ids

__all__ = ["LOG_PROBABILITIES", "check_finite", "class_log_probabilities", "needed_count", "order_scores", "ranks_of"]

LOG_PROBABILITIES = "log_probabilities"
_LOWEST = float(np.log(np.finfo(np.float32).tiny))  # -87.3; exp of it is still a normal float32 number


def class_log_probabilities(scored: ScoredBatch) -> Tensor:
    """(B, C) float32 log p = log softmax(z), detached, no lower than -87.3: also of logits that are -inf.

    Raises:
        ValueError: if the logits are not (B, C).
    """
    logits = scored.microbatch.predictions(needs_targets=False).logits
    if logits.ndim != 2:
        raise ValueError(
            f"The logits, classes last, have shape {tuple(logits.shape)}: several predictions per sample, but samples "
            "are compared by one prediction each, (B, C). Score with a model that predicts one class per sample, or "
            "choose a method that needs no such predictions."
        )
    return logits.detach().float().log_softmax(1).clamp(min=_LOWEST)


def check_finite(recorded: Recorded, block: int = 1 << 14) -> None:
    """Read every column once, block by block.

    Raises:
        ValueError: if a value is infinite or NaN.
    """
    for name, column in recorded.columns.items():
        for first in range(0, len(column), block):
            finite = np.isfinite(column[first : first + block]).reshape(len(column[first : first + block]), -1).all(1)
            if not finite.all():
                raise ValueError(
                    f"Sample {first + int(np.argmin(finite))} has {name} that are not finite, so it cannot be compared "
                    "with others. The surrogate diverged or overflows on it: train it at a lower learning rate, or "
                    "score in float32."
                )


def needed_count(method: str, keep: int | None, num_samples: int) -> int:
    """How many to keep.

    Raises:
        ValueError: if that is not known, or not in [1, N].
    """
    if keep is None:
        raise ValueError(
            f"{method} chooses a set of a given size, but how many samples will be kept is not known: give prune_ratio "
            "where the dataset is scored."
        )
    if not 1 <= keep <= num_samples:
        raise ValueError(f"keep is {keep}, but must lie in [1, {num_samples}], the number of samples.")
    return keep


def ranks_of(num_samples: int, *, seed: int, epoch: int = 0) -> NDArray[np.int64]:
    """(N,) the rank of every id in a seeded random order: what decides ties, and what is drawn."""
    ranks = np.empty(num_samples, np.int64)
    ranks[np.argsort(hash_ids(np.arange(num_samples), seed=seed, epoch=epoch))] = np.arange(num_samples)
    return ranks


def order_scores(picks: NDArray[np.int64], num_samples: int) -> NDArray[np.float32]:
    """(N,) float32: 1 for the first pick, falling evenly to 1 / (number of picks) for the last; 0 for the others."""
    scores = np.zeros(num_samples, np.float32)
    scores[picks] = np.arange(len(picks), 0, -1) / len(picks)
    return scores
