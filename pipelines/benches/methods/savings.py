"""The prune ratio with which a method saves what is asked for."""

from __future__ import annotations

from collections.abc import Callable

from ted_stream.engine.plan import RunPlan
from ted_stream.methods import Method

__all__ = ["MOST", "TOLERANCE", "Search", "planned_prune_ratio"]

MOST = 0.999  # no method prunes more
TOLERANCE = 0.01
TRIES = 5


def planned_prune_ratio(
    make: Callable[[float], Method], saving: float, *, num_samples: int, epochs: int, whole_batches: int = 1
) -> float | None:
    """The prune ratio of a method whose saving is planned, by bisection.

    Args:
        make: the method of a prune ratio.
        saving: 1 - forwarded / what full data forwards of the whole run (TED, eq. 24).
        num_samples: N.
        epochs: T.
        whole_batches: samples are trained on by so many, and what is left of an epoch is not.

    Returns:
        ``None`` where the method decides on its own counts.

    Raises:
        ValueError: if not even the largest prune ratio saves so much.
    """

    def saves(ratio: float) -> float | None:
        plan = RunPlan(method=make(ratio), num_samples=num_samples, epochs=epochs)
        if plan.save_ratio is None:
            return None
        forwarded, full = (
            sum(count // whole_batches * whole_batches for count in counts)
            for counts in (plan.forecast({}), [num_samples] * epochs)
        )
        return 1 - forwarded / full

    most = saves(MOST)
    if most is None:
        return None
    if most < saving:
        raise ValueError(f"saves {most:.3f} at most in {epochs} epochs, not {saving:g}.")
    low, high = 0.0, MOST
    for _ in range(40):
        middle = (low + high) / 2
        if (saves(middle) or 0.0) < saving:
            low = middle
        else:
            high = middle
    return high


class Search:
    """Looks for the prune ratio of a method that decides on its own counts, whose saving is known after a run.

    Args:
        saving: to be reached.
        guess: to begin with.

    Attributes:
        ratio: to try next.
    """

    def __init__(self, saving: float, guess: float) -> None:
        self.saving, self.ratio = saving, guess
        self._tried: list[tuple[float, float]] = []

    def is_over(self, saved: float) -> bool:
        """Take in what a run with this ratio saved; whether that is near enough, or nothing comes nearer.

        Savings rise with the ratio, about in proportion between two that were tried.
        """
        self._tried.append((self.ratio, saved))
        if abs(saved - self.saving) <= TOLERANCE or len(self._tried) == TRIES:
            return True
        if self.ratio == MOST and saved < self.saving:
            return True
        low, less = max(((ratio, saved) for ratio, saved in [(0.0, 0.0), *self._tried] if saved < self.saving))
        above = [(ratio, saved) for ratio, saved in self._tried if saved >= self.saving]
        if above:
            high, more = min(above)
            self.ratio = low + (high - low) * (self.saving - less) / (more - less)
        else:
            self.ratio = min(MOST, self.ratio * min(1.5, self.saving / max(saved, 1e-6)))
        return False
