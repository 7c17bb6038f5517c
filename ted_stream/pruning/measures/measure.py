"""What a measure is, and what it sees of a microbatch."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ted_stream.pruning.batches import logits_of, targets_of
from ted_stream.pruning.loss_kinds import LossFunction, LossReading
from ted_stream.pruning.predictions import Predictions
from ted_stream.pruning.segments import Segments

__all__ = ["Measure", "Microbatch"]


@dataclass(frozen=True, kw_only=True)
class Microbatch:
    """A microbatch between its forward and its backward pass.

    Args:
        batch: as the model was given it.
        outputs: of the model.
        loss: () or (B,), the unscaled loss that is about to be differentiated.
        size: B, or n where samples share rows; measurements are (B,) or (n,).
        shifted: whether position i predicts target i + 1.
        loss_function: the model's loss of (outputs, batch), where it has one.
        reading: how the loss is made of the samples' losses, where that has been read.
        features: (B, …, D), what entered the output layer, where the measure asks for it.
        has_bias: whether the output layer has one.
        segments: where samples share rows.
    """

    batch: Any
    outputs: Any
    loss: Tensor
    size: int
    shifted: bool
    loss_function: LossFunction | None = None
    reading: LossReading | None = None
    features: Tensor | None = None
    has_bias: bool = False
    segments: Segments | None = None

    def predictions(self, *, needs_targets: bool) -> Predictions:
        """The logits and the class targets.

        Args:
            needs_targets: else a batch without targets will do as well.

        Raises:
            ValueError: if there are none.
        """
        logits = logits_of(self.outputs)
        if logits is None:
            raise ValueError(
                f"Outputs of type {type(self.outputs).__name__} hold no logits: let the model return them, alone or "
                "as the entry 'logits', or choose the measure MaskGradient at site='input'."
            )
        try:
            targets = targets_of(self.batch)
        except ValueError:
            if needs_targets:
                raise
            targets = None
        return Predictions(logits, targets, shifted=self.shifted, segments=self.segments)


class Measure(ABC):
    """One number per sample, from the forward and backward pass that trains on it.

    A measure adds no backward pass, and leaves the loss and the parameters' gradients as they are. Its class
    attributes say what must be watched for it; its repr rebuilds it.
    """

    site: str | None = None
    """Where a mask sits whose gradient is what is measured: ``input``, ``features`` or ``output``."""
    norm: int | None = None
    """Of the mask's gradient: ``None`` for one scalar per sample."""
    needs_features: ClassVar[bool] = False
    """Whether it looks at what enters the output layer."""
    needs_loss: ClassVar[bool] = False
    """Whether it hangs on how the loss weighs samples; else on the outputs alone."""
    needs_classes: ClassVar[bool] = False
    """Whether outputs must be logits of classes, and targets, if there are any, classes or their probabilities."""
    needs_targets: ClassVar[bool] = True
    """Of a measure that needs classes: whether it looks at the targets."""

    @property
    def needs_layer(self) -> bool:
        """Whether it looks at the output layer."""
        return self.needs_features or self.site in ("features", "output")

    @abstractmethod
    def values(self, microbatch: Microbatch) -> Tensor | None:
        """(B,) float32 (float64 for float64 outputs), detached; ``None`` from a measure that has a mask.

        Raises:
            ValueError: if it does not exist for such outputs and targets.
        """
