"""How many full epochs a run lasts, whatever its duration is counted in, and how far it has come."""

from dataclasses import dataclass

from composer.core import State, Time, TimeUnit

__all__ = ["Plan", "plan_epochs"]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run in epochs.

    Args:
        epochs: T, the last one perhaps in part.
        last_share: the share of the last epoch that is trained on, in (0, 1].
        asked: the duration that was asked for.
    """

    epochs: int
    last_share: float
    asked: str

    def share(self, epoch: int) -> float:
        """The share of an epoch (0-based) that is trained on."""
        return self.last_share if epoch == self.epochs - 1 else 1.0

    @property
    def full_epochs(self) -> float:
        """T, the last one by its share."""
        return self.epochs - 1 + self.last_share

    def refuse_to_end_before(self, done: int, length: int) -> None:
        """Refuse a last epoch of fewer batches than a checkpoint has of it.

        Args:
            done: batches of the epoch that the run goes on in.
            length: of that epoch, as planned.

        Raises:
            ValueError: naming both.
        """
        if done > length:
            raise ValueError(
                f"The checkpoint was made after {self.epochs - 1} epochs and {done} batches, but of its last epoch the "
                f"run is to train on {length}, by max_duration={self.asked}: what it has learnt since cannot be taken "
                "back. Let it last as long as it was begun with, or longer, or load an earlier checkpoint."
            )

    def shown(self, full_length: int, full_samples: int) -> Time[int]:
        """The duration of the full run, in the unit that it was asked for in; what schedules are to see."""
        unit = Time.from_timestring(self.asked).unit
        per_epoch = {TimeUnit.BATCH: full_length, TimeUnit.SAMPLE: full_samples}
        if unit not in per_epoch:
            return Time(self.epochs, TimeUnit.EPOCH)
        return Time(round(self.full_epochs * per_epoch[unit]), unit)


def plan_epochs(state: State, *, full_length: int, full_samples: int, before: Plan | None, again: bool) -> Plan:
    """Plan a run in epochs: each has its keep ratio, and stands for a full one.

    A duration in batches or samples is that of a full-data run: so many full epochs, the last one in part. The pruned
    run lasts as many epochs, of fewer batches each.

    Args:
        state: of the trainer.
        full_length: batches of a full epoch.
        full_samples: samples of a full epoch.
        before: the plan that the run has followed so far, if it goes on.
        again: whether it goes on in a further ``fit()``, whose duration counts on from what was really forwarded.

    Raises:
        ValueError: for a duration in tokens or seconds, or none at all: how much of that a full epoch takes is not
            known before it.
    """
    duration = state.max_duration
    if before is not None and duration is not None:
        # Asked for as before; or what this plan has made of it, where a fit was interrupted and goes on.
        asked = {before.asked, f"{before.epochs}ep"} if again else {before.asked}
        if duration.to_timestring() in asked:
            return before
    sizes = {TimeUnit.EPOCH: 1, TimeUnit.BATCH: full_length, TimeUnit.SAMPLE: full_samples}
    if duration is None or duration.unit not in sizes:
        raise ValueError(
            f"max_duration is {duration}, but pruning plans in epochs: each has its keep ratio, and how much of that "
            "unit a full epoch takes is not known before the run. Pass max_duration in epochs, for example '90ep', or "
            "in batches or samples of the full-data run."
        )
    size, done = sizes[duration.unit], 0
    amount = duration.value
    if again and duration.unit != TimeUnit.EPOCH:
        done = state.timestamp.epoch.value
        amount -= state.timestamp.get(duration.unit).value
    whole, rest = divmod(amount, size)
    return Plan(
        epochs=done + whole + (rest > 0), last_share=rest / size if rest else 1.0, asked=duration.to_timestring()
    )
