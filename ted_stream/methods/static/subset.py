"""From the scores of a static method to the subset that is kept: the highest, by class, by strata."""

import numpy as np
from numpy.typing import NDArray

from ted_stream.pruning.hashing import hash_ids
from ted_stream.pruning.sampling import proportional
from ted_stream.pruning.settings import check_choice, check_number, check_whole

__all__ = ["BALANCES", "choose_subset", "class_quotas"]

BALANCES = ("none", "as_they_are", "sqrt", "equal")


def choose_subset(
    scores: NDArray[np.floating],
    keep: int,
    *,
    left_out: NDArray[np.bool_] | None = None,
    labels: NDArray[np.integer] | None = None,
    balance: str = "none",
    strata: int = 0,
    cutoff: float = 0.0,
    seed: int = 0,
) -> NDArray[np.bool_]:
    """Mark the samples to keep: exactly ``keep``, the same ones for the same arguments.

    The highest scores, or with ``strata`` a coverage of all of them (coverage-centric selection, CCS: Zheng et al.
    2023, Algorithm 1): the range of the scores is cut into strata of equal width, the budget is shared equally over
    those that hold samples, the smallest first, what one cannot take passing on to the others, and in each stratum a
    uniform sample is drawn. With ``balance`` all of this is done within each class.

    Args:
        scores: (N,) finite, of those that are not left out; the highest are kept, and count as the hardest.
        keep: how many, in [1, N], N without those that are left out.
        left_out: (N,) samples that are never kept; ``None``: none is.
        labels: (N,) whole numbers from 0, the class of each sample.
        balance: shares of the classes: ``none`` looks at no classes; ``as_they_are`` is proportional to their sizes
            n_c, ``sqrt`` to √n_c, ``equal`` gives all the same; see :func:`class_quotas`.
        strata: how many; 0 keeps the highest scores.
        cutoff: β in [0, 1), the share of the highest scores (of each class, where classes are balanced) that is left
            out first: the hardest may be mislabelled.
        seed: of draws and of ties, which hashes of the ids decide.

    Returns:
        (N,) bool.

    Raises:
        ValueError: for a value out of range, scores that are not finite, labels that are missing or do not fit, or if
            the cutoff leaves fewer samples than are to be kept.
        TypeError: for a value of another type.
    """
    ids = np.arange(len(scores)) if left_out is None else np.flatnonzero(~left_out)
    scores, labels = _checked(scores, ids, labels, balance)
    keep, strata = check_whole("keep", keep, fix="it is a count."), check_whole("strata", strata, fix="it is a count.")
    cutoff = check_number("cutoff", cutoff, "[0, 1)", fix="it is the share of the highest scores to leave out.")
    check_whole("seed", seed, fix="it seeds draws and ties.")
    if not 1 <= keep <= len(ids):
        but = "" if left_out is None else f" of {len(scores)} that may be kept"
        raise ValueError(f"keep is {keep}, but must lie in [1, {len(ids)}], the number of samples{but}.")
    if strata < 0:
        raise ValueError(f"strata is {strata}, but must be at least 1, or 0 for the highest scores.")
    # Within each class by descending score; ties by the hash of the id, never by position.
    order = ids[np.lexsort((hash_ids(ids, seed=seed), scores[ids], -labels[ids]))[::-1]]
    sizes = np.bincount(labels[ids], minlength=labels.max() + 1)
    left = sizes - np.round(cutoff * sizes, 6).astype(np.int64)  # 0.29 · 100 is 28.999999999999996
    if left.sum() < keep:
        raise ValueError(
            f"keep is {keep}, but cutoff={cutoff} leaves {left.sum()} of {len(ids)} samples. Lower one of them."
        )
    marks = np.zeros(len(scores), np.bool_)
    quotas = class_quotas(sizes, left, keep, balance="as_they_are" if balance == "none" else balance)
    for members, rest, quota in zip(np.split(order, np.cumsum(sizes)[:-1]), left, quotas, strict=True):
        pool = members[len(members) - rest :]
        marks[_from_strata(scores, pool, quota, strata, seed) if strata else pool[:quota]] = True
    return marks


def class_quotas(sizes: NDArray[np.int64], caps: NDArray[np.int64], keep: int, *, balance: str) -> NDArray[np.int64]:
    """How many of each class to keep: shares as ``balance`` says, none above its cap (see `proportional`).

    Args:
        sizes: (C,) samples of each class, n_c.
        caps: (C,) of them, how many may be kept.
        keep: at most the sum of the caps.
        balance: ``as_they_are``, ``sqrt`` or ``equal``; empty classes get nothing.
    """
    power = {"as_they_are": 1.0, "sqrt": 0.5, "equal": 0.0}[balance]
    return proportional(np.where(sizes > 0, sizes.astype(np.float64) ** power, 0), keep, caps)


def _from_strata(
    scores: NDArray[np.float64], pool: NDArray[np.int64], budget: int, strata: int, seed: int
) -> NDArray[np.int64]:
    """The samples of the pool that coverage-centric selection draws, exactly ``budget`` of them."""
    if not len(pool):
        return pool
    low, high = scores[pool].min(), scores[pool].max()
    stratum = np.minimum((scores[pool] - low) / ((high - low) or 1) * strata, strata - 1).astype(np.int64)
    counts = np.bincount(stratum, minlength=strata)
    filled = np.flatnonzero(counts)
    budgets = np.zeros(strata, np.int64)
    for done, at in enumerate(filled[np.argsort(counts[filled], kind="stable")]):
        budgets[at] = min(counts[at], (budget - budgets.sum()) // (len(filled) - done))
    # The hash of another epoch than that of the ties: whom the cutoff spared by its hash is not drawn for it.
    drawn = np.lexsort((hash_ids(pool, seed=seed, epoch=1), stratum))
    rank = np.arange(len(pool)) - np.repeat(np.cumsum(counts) - counts, counts)
    return pool[drawn[rank < np.repeat(budgets, counts)]]


def _checked(
    scores: NDArray[np.floating], ids: NDArray[np.int64], labels: NDArray[np.integer] | None, balance: str
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The scores as float64; the labels where classes are balanced, else one class for all."""
    check_choice("balance", balance, BALANCES)
    scores = np.asarray(scores, np.float64)
    if scores.ndim != 1 or not len(scores):
        raise ValueError(f"scores have shape {scores.shape}; give one for each of at least one sample, (N,).")
    wrong = np.count_nonzero(~np.isfinite(scores[ids]))
    if wrong:
        raise ValueError(
            f"{wrong} of {len(scores)} scores are infinite or NaN, which have no rank. Score those samples, or give "
            "them a score of your own."
        )
    if balance == "none":
        return scores, np.zeros(len(scores), np.int64)
    if labels is None:
        raise ValueError(f"balance={balance!r} shares by class, but there are no labels. Give them, or balance='none'.")
    labels = np.asarray(labels)
    if labels.shape != scores.shape or not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0:
        raise ValueError(
            f"labels have shape {labels.shape} and dtype {labels.dtype}, the lowest {labels.min(initial=0)}, but must "
            f"be a whole number from 0 for each of the {len(scores)} samples."
        )
    return scores, np.unique(labels, return_inverse=True)[1].astype(np.int64)
