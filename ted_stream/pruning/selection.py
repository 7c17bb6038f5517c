"""Which samples an epoch keeps: ranking keys from scores, and the exact top k of them over all ranks."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ted_stream.pruning.communicator import Communicator
from ted_stream.pruning.hashing import gumbel, hash_ids, uniform
from ted_stream.pruning.settings import check_number, check_whole

__all__ = [
    "HighestScores",
    "LowestScores",
    "SampledScores",
    "Selection",
    "UniformSample",
    "integers",
    "kth_largest",
    "make_keys",
    "quantiles_of",
    "search",
    "select",
    "sortable",
    "top_k_mask",
    "unsortable",
]

_CHUNK = 1 << 15  # values that are worked on at a time: temporaries stay in the cache and small
_BINS = 1 << 11  # of a histogram: an all-reduce of more takes longer than the pass that it saves
_SAMPLED = 1 << 15  # keys that every rank samples, to guess the first bracket
_ZERO = 1e38  # the keys of scores of zero lie below minus this, all others above
_QUANTILES = 1 << 12  # of the samples, that all ranks together tell each other


class Selection(Protocol):
    """Turns scores into ranking keys; the k highest keys are kept."""

    def keys(self, scores: NDArray[np.float32], ids: NDArray[np.int64], epoch: int) -> NDArray[np.float32]:
        """Keys of samples, a pure function of their arguments: independent of rank and world size.

        Args:
            scores: (n,) float32 running scores; NaN for a sample that was never measured.
            ids: (n,) int64 sample ids.
            epoch: the epoch that is selected for (0-based).

        Returns:
            (n,) float32, free of NaN. Where scores matter, a sample that was never measured ranks first.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class HighestScores:
    """Keep the highest scores (TED, eq. 20)."""

    def keys(self, scores: NDArray[np.float32], ids: NDArray[np.int64], epoch: int) -> NDArray[np.float32]:
        """The scores."""
        del ids, epoch
        keys = scores.copy()
        keys[np.isnan(keys)] = np.inf
        return keys


@dataclass(frozen=True, kw_only=True)
class LowestScores:
    """Keep the lowest scores ("TED-reverse": TED, Fig. 8)."""

    def keys(self, scores: NDArray[np.float32], ids: NDArray[np.int64], epoch: int) -> NDArray[np.float32]:
        """Minus the scores."""
        del ids, epoch
        return np.where(np.isnan(scores), np.float32(np.inf), -scores)


@dataclass(frozen=True, kw_only=True)
class SampledScores:
    """Sample k without replacement with probabilities proportional to score^(1/τ), by Gumbel top-k.

    The keys are log(score) / τ + G with G a Gumbel variate of (seed, epoch, id). τ → 0 keeps the highest scores,
    τ → ∞ a uniform sample (the Gumbel top-k trick: Kool, van Hoof and Welling, 2019).

    Args:
        temperature: τ > 0.
        seed: of the Gumbel variates.
    """

    temperature: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        fix = "it must be positive; for the limit 0, the highest scores, pass choice='highest'."
        object.__setattr__(self, "temperature", check_number("temperature", self.temperature, "(0, inf]", fix=fix))
        check_whole("seed", self.seed, fix="it seeds the draws.")

    def keys(self, scores: NDArray[np.float32], ids: NDArray[np.int64], epoch: int) -> NDArray[np.float32]:
        """log(score) / τ + G; scores of zero or less rank last, in an order of their own in every epoch."""
        with np.errstate(divide="ignore"):
            logits = np.log(np.maximum(scores, 0).astype(np.float64)) / self.temperature
        keys = np.maximum(logits + gumbel(ids, seed=self.seed, epoch=epoch), -_ZERO).astype(np.float32)
        zero = scores <= 0
        if zero.any():  # equal keys would be told apart by a hash without the epoch: the same samples every time
            draws = uniform(ids[zero], seed=self.seed, epoch=epoch)
            keys[zero] = -_ZERO * (2 + draws)
        return np.where(np.isnan(scores), np.float32(np.inf), keys)


@dataclass(frozen=True, kw_only=True)
class UniformSample:
    """A fresh uniform sample every epoch, whatever the scores.

    Args:
        seed: of the variates.
    """

    seed: int = 0

    def __post_init__(self) -> None:
        check_whole("seed", self.seed, fix="it seeds the draws.")

    def keys(self, scores: NDArray[np.float32], ids: NDArray[np.int64], epoch: int) -> NDArray[np.float32]:
        """A uniform variate of (seed, epoch, id)."""
        del scores
        return uniform(ids, seed=self.seed, epoch=epoch).astype(np.float32)


def sortable(keys: NDArray[np.float32]) -> NDArray[np.uint32]:
    """uint32 that order as the float32 do and leave no gap between neighbours; the image of 0.0 and -0.0 is 2^31."""
    bits = keys.view(np.uint32)
    return np.where(bits >> np.uint32(31), np.negative(bits), bits | np.uint32(1 << 31))


def unsortable(image: int) -> float:
    """The float32 whose ``sortable`` image is ``image``."""
    bits = image ^ (1 << 31) if image >> 31 else (1 << 32) - image
    return float(np.array([bits], np.uint32).view(np.float32)[0])


_ALL_KEYS = (0x00800000, 0xFF800000)  # the images of -inf and inf
_ALL_HASHES = (0, (1 << 64) - 1)


def _chunks(length: int) -> Iterator[slice]:
    return (slice(start, min(start + _CHUNK, length)) for start in range(0, length, _CHUNK))


# Unsigned integers that are read chunk by chunk, again in every pass. Called with bounds (low, high) they give for
# every chunk how many values lie above high, and the values from low to high.
_Values = Callable[[int, int], Iterable[tuple[int, NDArray[Any]]]]


def _split(values: NDArray[Any], low: Any, high: Any) -> tuple[int, NDArray[Any]]:
    at_least = values >= low
    inside = np.compress(at_least & (values <= high), values)
    return np.count_nonzero(at_least) - len(inside), inside


def integers(values: NDArray[np.unsignedinteger]) -> _Values:
    """An array to search in."""

    def split(low: int, high: int) -> Iterator[tuple[int, NDArray[Any]]]:
        bounds = values.dtype.type(low), values.dtype.type(high)
        return (_split(values[part], *bounds) for part in _chunks(len(values)))

    return split


def _images(keys: NDArray[np.float32]) -> _Values:
    """The ``sortable`` images of keys, made only of those within the bounds; NaN is in no bounds."""

    def split(low: int, high: int) -> Iterator[tuple[int, NDArray[Any]]]:
        bounds = np.float32(unsortable(low)), np.float32(unsortable(high))
        for part in _chunks(len(keys)):
            above, inside = _split(keys[part], *bounds)
            yield above, sortable(inside)

    return split


_Ids = Callable[[NDArray[np.int64]], NDArray[np.int64]]  # of positions


def _hashes_of_ties(keys: NDArray[np.float32], tie: np.float32, *, ids: _Ids, seed: int) -> _Values:
    """The hashes of the ids whose key is ``tie``, made anew in every pass: stored they would take 8 bytes each."""

    def split(low: int, high: int) -> Iterator[tuple[int, NDArray[Any]]]:
        for part in _chunks(len(keys)):
            hashes = hash_ids(ids(part.start + np.flatnonzero(keys[part] == tie)), seed=seed)
            yield _split(hashes, np.uint64(low), np.uint64(high))

    return split


def search(
    values: _Values,
    k: int,
    communicator: Communicator,
    *,
    domain: tuple[int, int],
    guess: tuple[int, int] | None = None,
    exact: bool = False,
    storable: int = 0,
) -> tuple[int, int, int]:
    """Find the k-th largest value over all ranks by histograms of ever narrower brackets.

    Args:
        values: this rank's part.
        k: from 1 to the number of values over all ranks.
        communicator: one all-reduce of 2^11 counts for every bracket.
        domain: bounds of all values, included.
        guess: bounds to look within first; a wrong guess costs one pass.
        exact: narrow the bracket down to one value, even where all within it are among the k largest.
        storable: how many values a rank may store, which spares it later passes over the others.

    Returns:
        (low, wanted, count): ``low`` is the last bracket's lower bound. It holds ``count`` values, which are equal
        if ``wanted`` < ``count``; ``wanted`` of them and all values above it are the k largest.
    """
    low, high = guess or domain
    passed = 0  # values of this rank above all that it stored
    while True:
        shift = max(0, (high - low).bit_length() - (_BINS.bit_length() - 1))
        mine = np.zeros(_BINS + 1, np.int64)  # of the bins, then of all above
        mine[-1] = passed
        stored: list[NDArray[Any]] = []
        num_inside = 0
        for above, inside in values(low, high):
            bins = (inside - inside.dtype.type(low)) >> inside.dtype.type(shift)
            mine[:-1] += np.bincount(bins.astype(np.int64), minlength=_BINS)
            mine[-1] += above
            num_inside += len(inside)
            stored.append(inside)
            if num_inside > storable:
                stored.clear()
        counts = communicator.all_reduce_sum(mine)
        at_least = np.cumsum(counts[::-1])[::-1]
        if at_least[0] < k:
            low, high = domain[0], low - 1
        elif counts[-1] >= k:
            low, high = high + 1, domain[1]
        else:
            bin_ = int(np.flatnonzero(at_least >= k)[-1])
            wanted, count = int(k - at_least[bin_ + 1]), int(counts[bin_])
            low += bin_ << shift
            high = min(high, low + (1 << shift) - 1)
            if low == high or (wanted == count and not exact):
                return low, wanted, count
            if stored:
                values, passed = integers(np.concatenate(stored)), int(mine[-1])


@dataclass(frozen=True, kw_only=True)
class _Survey:
    """What one all-reduce tells every rank about all keys.

    Args:
        total: how many there are.
        invalid: how many of them are NaN.
        sampled: how many of the others were sampled.
        quantiles: (m,) int64, the images of evenly spaced quantiles of every rank's sample, sorted.
    """

    total: int
    invalid: int
    sampled: int
    quantiles: NDArray[np.int64]

    def guess(self, fraction: float) -> tuple[int, int]:
        """Bounds that likely hold the key that a fraction of all keys reach; any bounds are right, close ones fast."""
        size = len(self.quantiles)
        # Three standard deviations of the sample, and the spacing of the quantiles.
        margin = 3 * size * (fraction * (1 - fraction) / max(1, self.sampled)) ** 0.5 + size**0.5 / 64 + 1
        first, last = int(size * (1 - fraction) - margin), int(size * (1 - fraction) + margin) + 1
        low = int(self.quantiles[first]) if first >= 0 else _ALL_KEYS[0]
        high = int(self.quantiles[last]) if last < size else _ALL_KEYS[1]
        return low, high


def _survey(keys: NDArray[np.float32], communicator: Communicator) -> _Survey:
    sample = keys[:: -(-len(keys) // _SAMPLED) or 1]
    sample = np.sort(sample[~np.isnan(sample)])
    share = max(1, _QUANTILES // communicator.world_size)
    report = np.zeros(3 + share * communicator.world_size, np.int64)
    report[0] = len(keys)
    report[1] = sum(np.count_nonzero(np.isnan(keys[part])) for part in _chunks(len(keys)))
    report[2] = len(sample)
    if len(sample):
        start = 3 + share * communicator.rank
        report[start : start + share] = sortable(sample[(2 * np.arange(share) + 1) * len(sample) // (2 * share)])
    report = communicator.all_reduce_sum(report)
    total, invalid, sampled = report[:3].tolist()
    quantiles = np.sort(report[3:][report[3:] > 0])  # the image of no key is 0
    return _Survey(total=total, invalid=invalid, sampled=sampled, quantiles=quantiles)


def kth_largest(keys: NDArray[np.float32], ks: Sequence[int], communicator: Communicator) -> list[float]:
    """The k-th largest key over all ranks, for every k.

    Args:
        keys: (n,) float32, this rank's part, of any length; NaN are passed over.
        ks: each from 1 to the number of keys over all ranks that are not NaN.
        communicator: the ranks.
    """
    survey = _survey(keys, communicator)
    found: list[float] = []
    for k in ks:
        guess = survey.guess(k / (survey.total - survey.invalid))
        image, _, _ = search(_images(keys), k, communicator, domain=_ALL_KEYS, guess=guess, exact=True)
        found.append(unsortable(image))
    return found


def quantiles_of(values: NDArray[np.floating], shares: Sequence[float], communicator: Communicator) -> list[float]:
    """Exact quantiles, as float32, of the m values of all ranks that are not NaN; NaN where there are none.

    Args:
        values: (n,) of this rank.
        shares: q in [0, 1], each for the ⌈q·m⌉-th smallest.
        communicator: the ranks.
    """
    total = int(communicator.all_reduce_sum(np.array([np.count_nonzero(~np.isnan(values))], np.int64))[0])
    if not total:
        return [float("nan")] * len(shares)
    # Rounding first: 0.55 · 100 is 55.00000000000001.
    ranks = [total + 1 - min(total, max(1, int(np.ceil(round(share * total, 6))))) for share in shares]
    return kth_largest(values.astype(np.float32, copy=False), ranks, communicator)


def top_k_mask(
    keys: NDArray[np.float32],
    k: int,
    *,
    first_id: int = 0,
    ids: NDArray[np.int64] | None = None,
    seed: int,
    communicator: Communicator,
) -> NDArray[np.bool_]:
    """Mark the k highest keys over all ranks; the same marks for every world size.

    Ties at the k-th key are broken by a seeded hash of the sample id, never by position. Beside keys and mask it
    takes at most 2 bytes per key.

    Args:
        keys: (n,) float32, of samples that this rank owns.
        k: how many to mark over all ranks, from 0 to their total.
        first_id: the samples are first_id … first_id + n - 1, unless there are ``ids``.
        ids: (n,) int64, theirs.
        seed: of the tie-breaking hash.
        communicator: the ranks.

    Returns:
        (n,) bool.

    Raises:
        ValueError: if a key is NaN or k is out of range; on every rank alike.
    """
    survey = _survey(keys, communicator)
    total = survey.total
    if survey.invalid:
        raise ValueError(
            f"{survey.invalid} of {total} ranking keys are NaN; a NaN has no rank, so it must be dropped before."
        )
    if not 0 <= k <= total:
        raise ValueError(f"k is {k}, but it must lie in [0, {total}], the number of samples.")
    if k in (0, total):
        return np.full(len(keys), k > 0)
    storable = len(keys) // 8
    low, wanted, count = search(
        _images(keys), k, communicator, domain=_ALL_KEYS, guess=survey.guess(k / total), storable=storable
    )
    threshold = np.float32(unsortable(low))
    if wanted == count:
        return keys >= threshold

    def ids_at(positions: NDArray[np.int64]) -> NDArray[np.int64]:
        return first_id + positions if ids is None else ids[positions]

    ties = _hashes_of_ties(keys, threshold, ids=ids_at, seed=seed)
    lowest, _, _ = search(ties, wanted, communicator, domain=_ALL_HASHES, storable=storable)
    mask = keys > threshold
    for part in _chunks(len(keys)):
        tied = part.start + np.flatnonzero(keys[part] == threshold)
        mask[tied] = hash_ids(ids_at(tied), seed=seed) >= np.uint64(lowest)
    return mask


def select(
    selection: Selection,
    scores: NDArray[np.float32],
    k: int,
    *,
    first_id: int,
    epoch: int,
    seed: int,
    communicator: Communicator,
) -> NDArray[np.bool_]:
    """Mark the k samples over all ranks that a selection ranks highest.

    Args:
        selection: gives the ranking keys, which take 4 bytes per sample beside what ``top_k_mask`` takes.
        scores: (n,) float32, the scores of the samples first_id … first_id + n - 1, which this rank owns.
        k: how many to mark over all ranks, from 0 to their total.
        first_id: this rank's first sample id.
        epoch: the epoch that is selected for (0-based).
        seed: of the hash that breaks ties.
        communicator: the ranks.

    Returns:
        (n,) bool.

    Raises:
        ValueError: if k is out of range; on every rank alike.
    """
    keys = make_keys(lambda part, ids: selection.keys(part, ids, epoch), scores, first_id=first_id)
    return top_k_mask(keys, k, first_id=first_id, seed=seed, communicator=communicator)


def make_keys(
    keys: Callable[[NDArray[np.float32], NDArray[np.int64]], NDArray[Any]],
    scores: NDArray[np.float32],
    *,
    first_id: int,
) -> NDArray[np.float32]:
    """Ranking keys, made for a few samples at a time: what a key is made of never exists for all at once.

    Args:
        keys: makes the keys of samples from their scores and their ids, int64.
        scores: (n,) float32, the scores of the samples first_id … first_id + n - 1.
        first_id: this rank's first sample id.

    Returns:
        (n,) float32.
    """
    # Not made anew in every pass: drawn keys take longer than all passes together.
    made = np.empty(len(scores), np.float32)
    offsets = np.arange(min(_CHUNK, len(scores)))
    for part in _chunks(len(scores)):
        made[part] = keys(scores[part], first_id + part.start + offsets[: part.stop - part.start])
    return made
