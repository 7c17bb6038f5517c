"""What the first microbatch shows about whether a measure means what it says."""

from typing import Any

from torch import Tensor

from ted_stream.pruning.batches import logits_of, targets_of
from ted_stream.pruning.loss_kinds import LossFunction, LossReading, read_loss
from ted_stream.pruning.measures import Measure

__all__ = ["FirstLook"]


class FirstLook:
    """Takes a few numbers of the first microbatch, and looks at their values later, in :meth:`check`.

    Args:
        measure: what is measured.
        function: the model's loss of (outputs, batch), where it has one.
        outputs: of the model.
        batch: the microbatch.
        loss: what is about to be differentiated.
        size: B.
        shifted: whether labels are shifted.
    """

    def __init__(
        self,
        measure: Measure,
        function: LossFunction | None,
        outputs: Any,
        batch: Any,
        loss: Tensor,
        size: int,
        *,
        shifted: bool,
    ) -> None:
        self._measure = measure
        self.reading: LossReading | None = None
        if measure.needs_loss and loss.shape != (size,):  # a vector is a loss per sample
            logits = logits_of(outputs)
            has_rows = logits is None or len(logits) == size
            self.reading = read_loss(function if has_rows else None, outputs, batch, loss, size, shifted=shifted)
        self._target_sums = _target_sums(batch) if measure.needs_classes or self._takes_cross_entropies() else None
        self._is_checked = False

    def _takes_cross_entropies(self) -> bool:
        """Whether the samples' losses can be had as cross-entropies alone."""
        return self.reading is not None and not self.reading.by_itself and self._measure.site is None

    def check(self) -> None:
        """Look at the values, once; waits for the device.

        Raises:
            ValueError: if the measure hangs on a loss that is neither a mean nor a sum over samples, or if targets
                that must be class probabilities are none.
        """
        if self._is_checked:
            return
        self._is_checked = True
        sums = self._target_sums
        if sums is not None and bool((sums - 1).abs().gt(0.02).any()):
            raise ValueError(
                f"The targets of the first microbatch sum to {sums.tolist()[:4]} over the classes, so they are no "
                f"class probabilities, which {self._measure!r} needs. Choose the measure MaskGradient, or Loss with a "
                "loss function."
            )
        if self.reading is not None:
            self.reading.settle()


def _target_sums(batch: Any) -> Tensor | None:
    """Sums of floating-point targets over the classes."""
    try:
        targets = targets_of(batch)
    except ValueError:
        return None
    return targets.detach().sum(-1) if targets.is_floating_point() and targets.ndim > 1 else None
