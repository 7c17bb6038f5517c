"""What a run is planned to keep, epoch by epoch."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from warnings import warn

from ted_stream.methods import Method
from ted_stream.pruning import num_kept

__all__ = ["Position", "RunPlan"]

Position = Callable[[int, int, int], float]


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """The length of a run, and what a method keeps in it.

    Args:
        method: that chooses.
        num_samples: N, of the dataset.
        epochs: T.
        last_share: the share of the last epoch that is trained on, in (0, 1].
        full_epoch: samples that an epoch of full data forwards, where those are not N.
    """

    method: Method
    num_samples: int
    epochs: int
    last_share: float = 1.0
    full_epoch: int | None = None

    def keep_ratio(self, epoch: int) -> float | None:
        """r_t of an epoch (0-based); ``None`` where the method decides on a count in the epoch itself."""
        return self.method.keep_ratio(epoch, self.epochs)

    def kept(self, epoch: int) -> int | None:
        """How many samples an epoch is to keep: ⌈r_t·N⌉, at least one."""
        ratio = self.keep_ratio(epoch)
        return None if ratio is None else num_kept(ratio, self.num_samples)

    def share(self, epoch: int) -> float:
        """The share of an epoch that is trained on."""
        return self.last_share if epoch == self.epochs - 1 else 1

    def full_epochs(self, epochs: Iterable[int]) -> float:
        """How many full epochs these epochs stand for."""
        return sum(map(self.share, epochs))

    def warn_if_nothing_is_pruned(self) -> None:
        """Warn of a run of one epoch that keeps everything."""
        if self.epochs == 1 and self.keep_ratio(0) == 1:
            warn(
                f"The run has one epoch, and {self.method!r} keeps all samples in the first: nothing will be pruned. "
                "Train for more epochs, or choose a method that prunes from the first.",
                UserWarning,
                stacklevel=3,
            )

    def refuse_to_end_before(self, epoch: int, batches_done: int) -> None:
        """Refuse a run that is to end before the place that it goes on from.

        Raises:
            ValueError: naming both.
        """
        if (epoch, batches_done) > (self.epochs, 0):
            batches = f" and {batches_done} batches" if batches_done else ""
            raise ValueError(
                f"The checkpoint was made after {epoch} epochs{batches}, but the run is to end after {self.epochs}: "
                "what it has learnt since cannot be taken back. Let it last as many epochs as it was begun with, or "
                "more, load an earlier checkpoint, or start a new run in another folder."
            )

    @property
    def save_ratio(self) -> float | None:
        """1 - (samples forwarded) / (N·T), known before the run (TED, eq. 24), unless the method decides as it goes."""
        kept = [self.kept(epoch) for epoch in range(self.epochs)]
        if any(count is None for count in kept):
            return None
        forwarded = sum(self.share(epoch) * (count or 0) for epoch, count in enumerate(kept))
        return 1 - forwarded / (self.num_samples * self.full_epochs(range(self.epochs)))

    def saved(self, forwarded: Mapping[int, int]) -> float:
        """1 - (samples forwarded) / (those of full data), as measured (TED, eq. 24).

        Args:
            forwarded: by epoch, of those that have ended.
        """
        full = (self.full_epoch or self.num_samples) * self.full_epochs(forwarded)
        return 1 - sum(forwarded.values()) / full if forwarded else 0.0

    def full_samples(self, epochs: Iterable[int]) -> int:
        """How many samples full data forwards in these epochs."""
        return round((self.full_epoch or self.num_samples) * self.full_epochs(epochs))

    @property
    def smallest_epoch(self) -> tuple[int, float] | None:
        """The epoch of the lowest planned keep ratio, and that ratio."""
        ratios = {epoch: self.keep_ratio(epoch) for epoch in range(self.epochs)}
        planned = {epoch: ratio for epoch, ratio in ratios.items() if ratio is not None}
        return min(planned.items(), key=lambda item: item[1]) if planned else None

    def forecast(self, begun: Mapping[int, int], *, progress: str = "samples") -> list[int]:
        """How many samples every epoch keeps.

        Args:
            begun: by epoch, what those that have begun do keep; the others as planned.
            progress: for which it must be known, for messages.

        Raises:
            ValueError: if the method decides in an epoch itself.
        """
        kept = [begun.get(epoch, self.kept(epoch)) for epoch in range(self.epochs)]
        if None in kept:
            raise ValueError(
                f"progress is {progress!r}, but {self.method!r} has a count of its own, so the "
                "samples of the whole run are not known in advance. Pass progress='epochs'."
            )
        return [count for count in kept if count is not None]

    def positions(self, full_length: int, kept: Sequence[int] | None) -> Position:
        """How far a run has come, in batches (or steps) of the full run.

        Args:
            full_length: L, batches of a full epoch.
            kept: samples of every epoch, to advance by samples forwarded; ``None`` advances by epochs.

        Returns:
            A function of (epoch, its batches done, its batches).
        """
        if kept is None or len(set(kept)) == 1:  # then both are the same, and this without rounding
            return lambda epoch, done, batches: epoch * full_length + done * full_length * self.share(epoch) / batches
        forwarded = [count * self.share(epoch) for epoch, count in enumerate(kept)]
        total = full_length * self.full_epochs(range(self.epochs))

        def position(epoch: int, done: int, batches: int) -> float:
            now = forwarded[epoch] * (done / batches) if epoch < len(forwarded) else 0.0
            return total * ((sum(forwarded[:epoch]) + now) / sum(forwarded))  # to the bit the total at the end

        return position
