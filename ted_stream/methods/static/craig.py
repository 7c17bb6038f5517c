"""CRAIG: medoids of the last layer's gradients, class by class, each weighing as many as it stands for."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ted_stream.methods.static.last_layer import LastLayer
from ted_stream.methods.static.last_layer_method import LastLayerMethod
from ted_stream.methods.static.picks import needed_count, ranks_of
from ted_stream.methods.static.static_method import Recorded, Scored
from ted_stream.pruning.sampling import proportional
from ted_stream.pruning.settings import check_number, check_whole

__all__ = ["CRAIG"]


@dataclass(frozen=True, kw_only=True)
class CRAIG(LastLayerMethod):
    """Keep the samples whose gradients are nearest to all others', weighted by how many (Mirzasoleiman et al., 2020).

    In every class, greedy facility location (their algorithm 1): the set S that maximises Σ_i (d₀ - min_{j ∈ S} d_ij),
    d_ij = ‖g_i - g_j‖₂ between gradients of the last layer and d₀ the largest of the class. A kept sample weighs the
    size of its cluster (the samples nearest to it), divided by the mean over the kept, so that weights are 1 on
    average and the learning rate stays what it is. Classes are kept in proportion to their sizes, and at least one
    sample of each where so many are kept.

    Args:
        block: a class of more samples is split at random into parts of about equal size, each a class of its own, so
            that no more than block² distances are held.

    Raises:
        ValueError: for a value out of range, at construction.
        TypeError: for a value of another type.
    """

    needs_count: ClassVar[bool] = True

    block: int = 4096

    def __post_init__(self) -> None:
        fix = "the most samples of a class that are compared with each other."
        object.__setattr__(self, "block", check_whole("block", self.block, fix=fix))
        check_number("block", self.block, "[1, inf)", fix=fix)

    def score(self, recorded: Recorded, *, keep: int | None, seed: int) -> Scored:
        """1 for the first pick of every class, falling to above 0 for its last; 0 for what is not kept."""
        keep = needed_count("CRAIG", keep, len(recorded))
        layer = LastLayer.of(recorded)
        classes = self._classes(layer.labels, seed)
        parts = [part for parts in classes for part in parts]
        scores, weights = np.zeros(len(layer), np.float32), np.ones(len(layer), np.float32)
        for part, share in zip(parts, _shares(classes, keep, seed), strict=True):
            if share:
                picks, sizes = _facility_location(layer.distances(part), share)
                scores[part[picks]] = np.arange(share, 0, -1) / share
                weights[part[picks]] = sizes
        kept = scores > 0
        weights[kept] /= weights[kept].mean(dtype=np.float64)
        return Scored(scores=scores, weights=weights)

    def _classes(self, labels: NDArray[np.int64], seed: int) -> list[list[NDArray[np.int64]]]:
        """The ids of the parts of every class, in a seeded random order: ties go to the first."""
        order = np.lexsort((ranks_of(len(labels), seed=seed), labels))
        classes = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)
        return [np.array_split(ids, -(-len(ids) // self.block)) for ids in classes]


def _shares(classes: Sequence[Sequence[NDArray[np.int64]]], keep: int, seed: int) -> list[int]:
    """How many of each part: one of every class where there are enough, the rest in proportion to their sizes."""
    sizes = np.array([sum(map(len, parts)) for parts in classes])
    least, drawn = int(keep >= len(sizes)), ranks_of(len(sizes), seed=seed).argsort()  # of equal remainders the first
    of_classes = np.empty_like(sizes)
    rest = sizes[drawn] - least
    of_classes[drawn] = least + proportional(rest.astype(np.float64), keep - least * len(sizes), rest)
    shares: list[int] = []
    for parts, share in zip(classes, of_classes.tolist(), strict=True):
        lengths = np.array([len(part) for part in parts])
        shares += proportional(lengths.astype(np.float64), share, lengths).tolist()
    return shares


def _facility_location(distances: NDArray[np.float32], count: int) -> tuple[list[int], NDArray[np.int64]]:
    """Greedy picks in their order, and the sizes of their clusters. A gain never grows, so stale ones are bounds."""
    farthest = distances.max()
    nearest = np.full(len(distances), farthest, np.float64)
    bounds = [(-_gain(nearest, row), place) for place, row in enumerate(distances)]
    heapq.heapify(bounds)
    picks: list[int] = []
    while len(picks) < count:
        _, place = heapq.heappop(bounds)
        fresh = (-_gain(nearest, distances[place]), place)
        if bounds and fresh > bounds[0]:
            heapq.heappush(bounds, fresh)
            continue
        picks.append(place)
        nearest = np.minimum(nearest, distances[place])
    cluster = distances[picks].argmin(0)
    cluster[picks] = np.arange(count)  # of two picks at one place each has its own cluster
    return picks, np.bincount(cluster, minlength=count)


def _gain(nearest: NDArray[np.float64], row: NDArray[np.float32]) -> np.float32:
    # Rounded, so that two samples that are nearest to each other tie: what they gain is the same.
    return np.float32(np.maximum(nearest - row, 0).sum())
