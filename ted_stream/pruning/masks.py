"""A mask per sample on a tensor of the forward pass: ones that change nothing, and whose gradient is read."""

from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ted_stream.pruning.batches import replace_first_tensor, tensors_of
from ted_stream.pruning.output_layer import input_embedding

__all__ = ["Chosen", "InputMask", "masked", "rows_refusal"]


class Chosen(Protocol):
    """Whether a layer that may have been the output layer is it: known by the time of the backward pass."""

    chosen: bool


class _Mask(torch.autograd.Function):
    """The tensor itself; its gradient times itself, per sample, becomes the mask's gradient."""

    @staticmethod
    def forward(
        ctx: Any, tensor: Tensor, mask: Tensor, norm: int | None, copy: bool, candidate: Chosen | None
    ) -> Tensor:
        ctx.save_for_backward(tensor)
        ctx.dtype, ctx.norm, ctx.candidate = mask.dtype, norm, candidate
        return tensor.clone() if copy else tensor.detach()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None, None, None]:  # pyright: ignore
        if ctx.candidate is not None and not ctx.candidate.chosen:
            return gradient, None, None, None, None
        try:
            (tensor,) = ctx.saved_tensors
        except torch.OutOfMemoryError:  # activations may be computed anew here
            raise
        except RuntimeError as error:
            raise ValueError(
                f"What the mask sits on was written to in place, before its gradient was taken ({error}). Name the "
                "layer with output_layer='…', so that the mask gets a copy of its output from the first batch on, or "
                "choose another site."
            ) from error
        product = gradient * tensor
        axes = tuple(range(1, tensor.ndim))
        if ctx.norm is not None:
            answer = torch.linalg.vector_norm(product, ctx.norm, axes, dtype=ctx.dtype) if axes else product.abs()
        else:
            answer = product.sum(axes) if axes else product
        return gradient, answer.to(ctx.dtype), None, None, None


def masked(tensor: Tensor, mask: Tensor, norm: int | None, *, copy: bool, candidate: Chosen | None = None) -> Tensor:
    """The tensor x as it is, with a mask δ_k = 1 on every sample, whose gradient the backward pass leaves.

    One scalar per sample: ∂L/∂δ_k = Σ x_k ∂L/∂x_k over all axes but the first. With a norm, a mask entry per entry of
    x_k, and the norm of their gradients: ‖x_k ⊙ ∂L/∂x_k‖.

    Args:
        tensor: (B, …) floating point.
        mask: (B,) ones that require a gradient; float32 or float64, the precision of norms. (A sum is in the tensor's
            precision, as that of a mask multiplied in would be.)
        norm: ``None``, 1 or 2.
        copy: whether to return a copy, which may be written to in place. Else the backward pass refuses that.
        candidate: where it is to be told before the backward pass only whether the mask counts.
    """
    result = _Mask.apply(tensor, mask, norm, copy, candidate)
    assert isinstance(result, Tensor)
    return result


def rows_refusal(tensor: Any, rows: int, place: str) -> ValueError | None:
    """Why a mask or weights cannot be put on a tensor; ``None`` if it is floating point with a row per sample."""
    if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
        return ValueError(
            f"{place} is no floating-point tensor, but {type(tensor).__name__}. Choose another site or measure, or "
            "another layer with output_layer='…'."
        )
    if tensor.shape[:1] == (rows,):
        return None
    return ValueError(
        f"{place} has first axis {len(tensor) if tensor.ndim else 'none'}, but the microbatch has {rows} samples, so "
        "its rows do not belong to samples. Choose another site or measure, or name the layer whose tensors keep the "
        "sample axis first with output_layer='…'."
    )


class InputMask:
    """A mask on the batch's first tensor, or, where that holds integers, on the output of the token embedding."""

    def __init__(self, norm: int | None) -> None:
        self._norm = norm
        self._hook: RemovableHandle | None = None
        self._mask: Tensor | None = None
        self._at_embedding = False
        self.applied = False

    def attach(self, model: nn.Module) -> None:
        """Hook the token embedding, where there is one; let go of an earlier model."""
        self.detach()
        embedding = input_embedding(model)
        if embedding is not None:
            self._hook = embedding.register_forward_hook(self._mask_embedding)

    def detach(self) -> None:
        """Leave the model as it was."""
        if self._hook is not None:
            self._hook.remove()
        self._hook = self._mask = None

    def _mask_embedding(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        mask = self._mask
        if mask is None or not self._at_embedding:
            return output
        refusal = rows_refusal(output, len(mask), f"The tensor at site='input' ({type(module).__name__})")
        if refusal is not None:
            raise refusal
        self.applied = True
        return masked(output, mask, self._norm, copy=True)  # models do write to their inputs in place

    def open(self, batch: Any, mask: Tensor) -> Any:
        """The batch to forward.

        Raises:
            ValueError: if its first tensor holds integers, and the model has no token embedding.
        """
        first = tensors_of(batch)[0]
        self._mask = mask
        self._at_embedding = not first.is_floating_point()
        self.applied = not self._at_embedding
        if not self._at_embedding:
            return replace_first_tensor(batch, lambda tensor: masked(tensor, mask, self._norm, copy=True))
        if self._hook is None:
            raise ValueError(
                f"The batch's first tensor holds {first.dtype} and the model has no token embedding, so there is "
                "nothing to mask at site='input': convert the inputs to floating point before the model "
                "(a DataSpec's batch_transforms), or put the mask at site='features'."
            )
        return batch

    def close(self) -> None:
        """After the backward pass: the forward passes that follow are left alone."""
        self._mask = None
