"""What is to be computed of a run, by what its folder holds."""

from __future__ import annotations

from dataclasses import dataclass

from ..training.settings import ConfigError, check_choice
from .runs import Run

__all__ = ["PARTS", "Asked", "Plan"]

PARTS = ("losses", "gradients", "interpolation")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is asked for of every run.

    Attributes:
        parts: of `PARTS`, at least one.
        every: use every so many-th epoch's checkpoint, and the last.
        start: epochs after which the interpolation begins.
        points: of the interpolation, its ends included.

    Raises:
        ConfigError: for a value out of range.
    """

    parts: tuple[str, ...]
    every: int
    start: int
    points: int

    def __post_init__(self) -> None:
        for part in self.parts:
            check_choice("only", part, PARTS)
        if not self.parts:
            raise ConfigError(f"only names nothing; there is {', '.join(PARTS)}.")
        for name, least in (("every", 1), ("start", 0), ("points", 2)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected {least} or more.")


class Plan:
    """Which checkpoints of a run are looked at, for what, and what is left out.

    Args:
        run: to be analysed.
        asked: of all runs.

    Attributes:
        parts: those of `PARTS` that there can be.
        after: epochs that were over at the weights that are looked at, 0 those of before.
        ends: epochs after which the two ends of the interpolation were; ``None`` without one.
        notes: what is left out, and why.

    Raises:
        ConfigError: nothing that was asked for can be had of this run.
    """

    def __init__(self, run: Run, asked: Asked) -> None:
        self.run, self.points = run, asked.points
        self.notes: list[str] = []
        last = max(run.checkpoints)
        known = [0, *run.checkpoints] if run.begins_anew else list(run.checkpoints)
        self.after = [epoch for epoch in known if epoch % asked.every == 0 or epoch == last]
        self.parts = set(asked.parts)
        if run.is_pruned:
            self._refuse_unknown()
        self._note_missing(last)
        if not run.is_pruned:
            self._leave_out_what_needs_pruning()
        self.ends: tuple[int, int] | None = None
        if "interpolation" in self.parts:
            self.ends = self._ends(known, last, asked.start)

    def _refuse_unknown(self) -> None:
        known = set(self.run.pruned_epochs())
        for after in self.after:
            if (epoch := max(0, after - 1)) not in known:
                raise ConfigError(
                    f"run.json of {self.run.folder} says nothing of epoch {epoch}, though there are weights after "
                    f"{after} epochs; copy the whole run folder again, or train again."
                )

    def _note_missing(self, last: int) -> None:
        run, total = self.run, self.run.num_epochs
        missing = total - len(run.checkpoints)
        if run.within:
            some = ", ".join(run.within[:3]) + (" …" if len(run.within) > 3 else "")
            self.notes.append(f"checkpoints in the middle of an epoch are left out: {some}.")
        if missing > 0:
            self.notes.append(
                f"checkpoints after {len(run.checkpoints)} of {total} epochs (save_interval is "
                f"{run.settings.save_interval or 'null'}, the last after epoch {last}): the others' losses and "
                "gradients are missing; train with save_interval=1ep for all."
            )
        if not run.begins_anew:
            self.notes.append(
                f"the run began with the weights of {run.settings.load_path}, so those before its first epoch are not "
                "known; its analysis begins with its first checkpoint."
            )

    def _leave_out_what_needs_pruning(self) -> None:
        why = (
            f"{self.run.folder} was trained on all data in every epoch (pruning.method is none), so nothing is kept or "
            "pruned"
        )
        if self.parts == {"gradients"}:
            raise ConfigError(
                f"{why}, and the gradient of kept data is that of all; name a run with a pruning method, or with "
                "data.skip_list."
            )
        if "gradients" in self.parts:
            self.notes.append(f"{why}: no gradients are compared, and losses are of all data.")
        self.parts.discard("gradients")

    def _ends(self, known: list[int], last: int, start: int) -> tuple[int, int]:
        if start not in known or start >= last:
            there = ", ".join(str(epoch) for epoch in known if epoch < last) or "none"
            raise ConfigError(
                f"start is {start}, but before the last one (after epoch {last}) {self.run.folder} has weights after "
                f"these many epochs: {there}; set --start to one of them, or train with save_interval=1ep."
            )
        return start, last

    @property
    def passes(self) -> int:
        """Over the training split, at most."""
        looks = self.parts & {"losses", "gradients"}
        return len(self.after) * bool(looks) + self.points * (self.ends is not None)
