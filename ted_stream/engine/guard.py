"""Whether a run's selection degenerates: figures of its epochs in, warnings out."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any
from warnings import catch_warnings, warn

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ted_stream.engine.finite_watch import WINDOW
from ted_stream.engine.plan import RunPlan
from ted_stream.engine.ranks import Ranks
from ted_stream.engine.record import EpochRecord
from ted_stream.engine.signs import LITTLE, classes_of, count_targets
from ted_stream.export.classes import find_scarce
from ted_stream.methods import Method
from ted_stream.pruning import Measurements

__all__ = ["Guard", "SelectionWarning", "findings"]

_FEWEST_RETURNING = 30  # expected in all: of fewer, chance may leave a tenth
_MANY = 0.25  # of the measurements; a gradient scaler that finds its scale costs a few steps


class SelectionWarning(UserWarning):
    """What a run selects degenerates: it is frozen, has lost a class, tells no samples apart, or measures no numbers.

    Each kind is said once a run, on rank 0, at the end of the epoch that shows it; that batch upon batch measures
    nothing finite, within the epoch. Made an error (``warnings.simplefilter("error", ted_stream.SelectionWarning)``),
    it ends the run there on all ranks.
    """


class Guard:
    """Looks at every epoch that has ended. A method that measures nothing is left alone: it chooses as it was told.

    Args:
        method: of the run.
        ranks: that the run has.
        records: of its epochs so far; the list that grows.

    Attributes:
        first_classes: samples of every class in the run's first epoch; empty where targets are no classes, and in a run
            that goes on from a state without them.
    """

    def __init__(self, method: Method, ranks: Ranks, records: list[EpochRecord]) -> None:
        self._is_on = method.measure() is not None
        self._ranks, self._records = ranks, records
        self.first_classes: list[int] = []
        self._before: list[int] = []  # targets of the epoch's part that another process trained on

    def state_dict(self, measurements: Measurements) -> dict[str, list[int]]:
        """Counts of classes in the run's first epoch, and in this one so far; collective.

        Args:
            measurements: of this rank in this epoch.
        """
        return {"first_classes": self.first_classes, "classes": self._count(measurements).tolist()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with what :meth:`state_dict` gave, or a state of before there was one."""
        self.first_classes, self._before = state.get("first_classes", []), state.get("classes", [])

    def _count(self, measurements: Measurements) -> NDArray[np.int64]:
        if not self._is_on:
            return np.empty(0, np.int64)
        now = count_targets(measurements.labels, self._ranks.communicator)
        counts = np.zeros(max(len(now), len(self._before)), np.int64)
        counts[: len(now)] += now
        counts[: len(self._before)] += np.array(self._before, np.int64)
        return counts

    def look(self, plan: RunPlan, measurements: Measurements) -> dict[str, str]:
        """Note in the last record what it shows; collective, the same on every rank.

        Args:
            plan: of the run.
            measurements: of this rank in the last epoch.

        Returns:
            What there is to say, by kind.
        """
        if not self._is_on:
            return {}
        record = self._records[-1]
        told = np.array([self._ranks.rank == 0 and "diverged" in record.warnings], np.int64)  # said within the epoch
        record.warnings = ["diverged"] * bool(self._ranks.communicator.all_reduce_sum(told)[0])
        counts, self._before = classes_of(self._count(measurements)), []
        if len(self._records) == 1:
            self.first_classes = counts.tolist()
        record.scarce_classes = find_scarce(counts, self.first_classes)
        found = findings(plan, self._records)
        record.warnings += found
        return found

    def say_diverged(self, steps: Sequence[int], values: Sequence[Tensor]) -> None:
        """Warn on rank 0, within an epoch, that nothing finite is measured any more; not collective, once a run.

        Weights that are not finite make it so on all ranks at the same batch; epochs' ends tell of what they do not.

        Args:
            steps: of the epoch's batches so far.
            values: (B,) floats, what each of them measured on this rank.

        Raises:
            SelectionWarning: on every rank, where the user has warnings raised.
        """
        if any("diverged" in record.warnings for record in self._records):
            return
        batches = next((at for at, batch in enumerate(reversed(values)) if batch.isfinite().any()), len(values))
        if batches < WINDOW:
            return  # it has come back since it was looked at
        self._records[-1].warnings.append("diverged")
        message = (
            f"None of the {sum(map(len, values[-batches:]))} measurements of the last {batches} batches is finite, "
            f"from batch {steps[-batches]} of epoch {self._records[-1].epoch} on: the loss has diverged, or overflows "
            "(a gradient scaler would have found its scale by now). The run teaches nothing any more, and scores stay "
            "what they were. Stop it, look at the loss of that batch, and go on from an earlier checkpoint with a "
            "lower learning rate or clipped gradients, or with another precision (bf16, fp32)."
        )
        if self._ranks.rank == 0:
            warn(message, SelectionWarning, stacklevel=_frames_to_outside())
            return
        with catch_warnings(record=True):  # raised, or not said again
            warn(message, SelectionWarning, stacklevel=_frames_to_outside())

    def say(self, found: dict[str, str]) -> None:
        """Warn on rank 0; collective.

        Raises:
            SelectionWarning: on rank 0, where the user has warnings raised.
            RuntimeError: with its message, on the other ranks.
        """
        for message in found.values():
            self._ranks.on_rank_zero(
                lambda message=message: warn(message, SelectionWarning, stacklevel=_frames_to_outside())
            )


def findings(plan: RunPlan, records: Sequence[EpochRecord]) -> dict[str, str]:
    """What is new to say at the end of the last record's epoch, by kind.

    Args:
        plan: of the run.
        records: of the epochs so far, with what was said before.
    """
    said = {kind for record in records for kind in record.warnings}
    if "diverged" in said:  # all else follows from it
        return {}
    found = {"diverged": _diverged(records[-1])}
    if found["diverged"] is None:
        found = {
            "non_finite": _non_finite(records[-1]),
            "alike": _alike(plan, records),
            "frozen": _frozen(plan, records),
            "class": _lost_class(plan, records),
        }
    return {kind: message for kind, message in found.items() if message is not None and kind not in said}


def _diverged(record: EpochRecord) -> str | None:
    if not record.forwarded or record.non_finite < record.forwarded:
        return None
    return (
        f"None of the {record.forwarded} measurements of epoch {record.epoch} is finite: the loss has diverged, or "
        "overflows, so the epoch taught nothing, and scores stay what they were. Go on from an earlier checkpoint with "
        "a lower learning rate or clipped gradients, or with another precision."
    )


def _non_finite(record: EpochRecord) -> str | None:
    if record.non_finite <= _MANY * record.forwarded:
        return None
    return (
        f"{record.non_finite} of the {record.forwarded} measurements of epoch {record.epoch} are not finite, where a "
        f"gradient scaler leaves few, and {_MANY:.0%} are many: these samples keep an older score, or none, and what "
        "has none is kept. Look at the loss of single batches, lower the learning rate, or train in another precision "
        "(bf16, fp32)."
    )


def _window(plan: RunPlan, records: Sequence[EpochRecord], size: int) -> Sequence[EpochRecord]:
    """The last so many records, if they are of epochs in a row that all leave something out; else none."""
    last = records[-size:]
    in_a_row = len(last) == size and last[-1].epoch - last[0].epoch == size - 1
    return last if in_a_row and all(record.kept < plan.num_samples for record in last) else []


def _alike(plan: RunPlan, records: Sequence[EpochRecord]) -> str | None:
    last = _window(plan, records, max(3, -(-plan.epochs // 10)))
    if not last or not all(record.scores_alike for record in last):
        return None
    return (
        f"All {plan.num_samples} scores of {plan.method!r} are equal in the epochs {_span(last)}: nothing tells "
        "samples apart, so ties and chance decide what is kept. Measure something that differs between samples "
        "(importance, site), or take a fresh random subset in every epoch: RandomPruning."
    )


def _frozen(plan: RunPlan, records: Sequence[EpochRecord]) -> str | None:
    last = _window(plan, records, max(3, -(-plan.epochs // 10)))
    if not last or last[-1].scores_alike or not all(record.expected_returning for record in last):
        return None
    returning = sum(record.returning for record in last)
    expected = sum(record.expected_returning for record in last)
    if expected < _FEWEST_RETURNING or returning >= LITTLE * expected:
        return None
    return (
        f"The selection of {plan.method!r} is frozen: in the epochs {_span(last)}, {returning} samples returned that "
        f"the epoch before had left out, where of a uniform draw of as many {expected:.0f} would have. The run trains "
        f"on a static subset, and what it leaves out is not measured again. {_remedy(plan.method)}"
    )


def _lost_class(plan: RunPlan, records: Sequence[EpochRecord]) -> str | None:
    last = _window(plan, records, max(5, -(-plan.epochs // 4)))
    lost = set.intersection(*(set(record.scarce_classes) for record in last)) if last else set()
    if not lost:
        return None
    names = ", ".join(map(str, sorted(lost)[:5])) + (f" and {len(lost) - 5} more" if len(lost) > 5 else "")
    return (
        f"{'Class' if len(lost) == 1 else 'Classes'} {names} nearly vanished from what {plan.method!r} keeps: in each "
        f"of the epochs {_span(last)} less than {LITTLE:.0%} of the share that the run's first epoch had, so the "
        "model forgets it. Give classes shares of what is kept: class_shares='sqrt' of Composed or RandomPruning, or "
        f"RCAP. {_remedy(plan.method)}"
    )


def _span(records: Sequence[EpochRecord]) -> str:
    return f"{records[0].epoch} to {records[-1].epoch}"


def _remedy(method: Method) -> str:
    """What makes the method leave more to chance, by the settings that it has."""
    settings = {option.name: getattr(method, option.name) for option in fields(method)}
    own = []
    if settings.get("choice") in ("highest", "lowest"):
        own.append("draw instead of ranking: choice='sampled'")
    elif "floor" in settings:
        own.append(f"pass a floor above {settings['floor']!r}, the share of the mean that is added to every score")
    if "epsilon" in settings:
        own.append(f"pass an epsilon above {settings['epsilon']!r}, the share that is drawn at random")
    if "pool" in settings:
        own.append("pass a smaller pool, which leaves more to chance")
    first, *rest = [*own, "take a fresh random subset in every epoch: RandomPruning"]
    return "; or ".join([first[0].upper() + first[1:], *rest]) + "."


def _frames_to_outside() -> int:
    """The ``stacklevel`` that shows the caller's warning at the innermost line outside of this package."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "ted_stream":
        frame, level = frame.f_back, level + 1
    return level
