"""The sample's own loss."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ted_stream.pruning.batches import map_tensors, per_sample_cross_entropy, tensors_of, total_loss, within_classes
from ted_stream.pruning.loss_kinds import LossFunction, holds_loss, in_float32, match
from ted_stream.pruning.measures.measure import Measure, Microbatch

__all__ = ["Loss", "own_losses"]


def own_losses(function: LossFunction, microbatch: Microbatch) -> Tensor:
    """(B,) the loss function's values on each sample alone, all at once (``torch.func.vmap``), detached.

    Raises:
        ValueError: if the function cannot be mapped over samples, for example since it looks at values.
    """
    both, size = (microbatch.outputs, microbatch.batch), microbatch.size

    def is_per_sample(tensor: Tensor) -> bool:
        return tensor.shape[:1] == (size,)

    def of_one(rows: list[Tensor]) -> Tensor:
        left = iter(rows)
        outputs, batch = map_tensors(
            both, lambda tensor: next(left).unsqueeze(0) if is_per_sample(tensor) else tensor.detach()
        )
        return total_loss(function(outputs, batch)).sum()

    # Halves are widened, as autocast does in most losses.
    rows = [in_float32(tensor.detach()) for tensor in tensors_of(both) if is_per_sample(tensor)]
    try:
        with torch.no_grad():
            return torch.func.vmap(of_one)(rows)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise ValueError(
            "The loss function cannot be evaluated for every sample of a batch at once, so the samples' own losses "
            "cannot be had. Let it work without a look at its tensors' values (torch.func.vmap says what failed), or "
            "choose another measure, such as MaskGradient."
        ) from error


@dataclass(frozen=True)
class Loss(Measure):
    """ℓ_k, the sample's own loss ("TED base on Loss": TED, Table 6); over tokens, the mean over its own targets.

    A loss that is a vector is taken as it is. Where the model's loss on single samples is the cross-entropy of its
    logits, that is what is computed, 2^24 logits at a time. Any other loss (regression, binary cross-entropy) is
    evaluated by the model's own function on every sample, at the memory that it takes itself.
    """

    needs_loss = True

    def values(self, microbatch: Microbatch) -> Tensor:
        """(B,) losses.

        Raises:
            ValueError: if they can be had neither from the loss function nor as cross-entropies of class targets.
        """
        loss, function, reading = microbatch.loss, microbatch.loss_function, microbatch.reading
        if loss.shape == (microbatch.size,):
            return _widened(loss.detach())
        if function is None or holds_loss(microbatch.outputs):
            return self._cross_entropies(microbatch)
        plain = False if reading is None else reading.is_cross_entropy
        if isinstance(plain, bool):
            return self._cross_entropies(microbatch) if plain else _widened(own_losses(function, microbatch))
        # It is not known yet, and to find out would wait for the device.
        assert reading is not None
        batch = within_classes(microbatch.outputs, microbatch.batch)
        cross_entropies = self._cross_entropies(replace(microbatch, batch=batch))
        try:
            own = _widened(own_losses(function, microbatch))
        except ValueError as error:
            reading.refusal = error
            return cross_entropies
        reading.is_cross_entropy = plain & match(own, cross_entropies, batch, shifted=microbatch.shifted)
        return torch.where(reading.is_cross_entropy, cross_entropies, own)

    @staticmethod
    def _cross_entropies(microbatch: Microbatch) -> Tensor:
        try:
            return per_sample_cross_entropy(
                microbatch.outputs, microbatch.batch, shifted=microbatch.shifted, segments=microbatch.segments
            )
        except ValueError as error:
            raise ValueError(
                "The samples' own losses can be had neither from a loss function nor as cross-entropies of class "
                f"targets. {error} Give the model's loss function, or let the loss be a vector, a loss per sample."
            ) from error


def _widened(losses: Tensor) -> Tensor:
    return losses if losses.dtype is torch.float64 else losses.float()
