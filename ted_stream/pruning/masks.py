"""A mask per sample on a tensor of the forward pass: ones that change nothing, and whose gradient is read."""

from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ted_stream.pruning.batches import replace_first_tensor, tensors_of
from ted_stream.pruning.output_layer import input_embedding
from ted_stream.pruning.segments import Places, token_sums

__all__ = ["Chosen", "InputMask", "masked", "rows_refusal"]


class Chosen(Protocol):
    """Whether a layer that may have been the output layer is it: known by the time of the backward pass."""

    chosen: bool


class _Mask(torch.autograd.Function):
    """The tensor itself; its gradient times itself, per sample, becomes the mask's gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        tensor: Tensor,
        mask: Tensor,
        norm: int | None,
        copy: bool,
        candidate: Chosen | None,
        tokens: Tensor | None,
        lengths: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(tensor, tokens, lengths)
        ctx.dtype, ctx.norm, ctx.candidate = mask.dtype, norm, candidate
        return tensor.clone() if copy else tensor.detach()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        if ctx.candidate is not None and not ctx.candidate.chosen:
            return gradient, None, None, None, None, None, None
        try:
            tensor, tokens, lengths = ctx.saved_tensors
        except torch.OutOfMemoryError:  # activations may be computed anew here
            raise
        except RuntimeError as error:
            raise ValueError(
                f"What the mask sits on was written to in place, before its gradient was taken ({error}). Name the "
                "layer with output_layer='…', so that the mask gets a copy of its output from the first batch on, or "
                "choose another site."
            ) from error
        product = gradient * tensor
        if tokens is None:
            answer = _reduced(product, 1, ctx.norm, ctx.dtype)
        else:
            power = ctx.norm or 1  # a norm is not negative
            of_tokens = _reduced(product, 2, ctx.norm, ctx.dtype).double() ** power
            answer = (token_sums(of_tokens, tokens, lengths) ** (1 / power)).to(ctx.dtype)
        return gradient, answer, None, None, None, None, None


def _reduced(product: Tensor, first: int, norm: int | None, dtype: torch.dtype) -> Tensor:
    """The sum, or the norm, over all axes from the first on."""
    axes = tuple(range(first, product.ndim))
    if norm is not None:
        return torch.linalg.vector_norm(product, norm, axes, dtype=dtype) if axes else product.abs().to(dtype)
    return (product.sum(axes) if axes else product).to(dtype)


def masked(
    tensor: Tensor,
    mask: Tensor,
    norm: int | None,
    *,
    copy: bool,
    candidate: Chosen | None = None,
    places: Places | None = None,
) -> Tensor:
    """The tensor x as it is, with a mask δ_k = 1 on every sample, whose gradient the backward pass leaves.

    One scalar per sample: ∂L/∂δ_k = Σ x_k ∂L/∂x_k over all axes but the first. With a norm, a mask entry per entry of
    x_k, and the norm of their gradients: ‖x_k ⊙ ∂L/∂x_k‖.

    Args:
        tensor: (B, …) floating point.
        mask: (B,) ones that require a gradient, (n,) where samples share rows; float32 or float64, the precision of
            norms. (A sum is in the tensor's precision, as that of a mask multiplied in would be.)
        norm: ``None``, 1 or 2.
        copy: whether to return a copy, which may be written to in place. Else the backward pass refuses that.
        candidate: where it is to be told before the backward pass only whether the mask counts.
        places: tokens and lengths of :class:`Segments`, where samples share rows; the tensor is (R, S, …) then.
    """
    result = _Mask.apply(tensor, mask, norm, copy, candidate, *(places or (None, None)))
    assert isinstance(result, Tensor)
    return result


def rows_refusal(tensor: Any, leading: tuple[int, ...], place: str) -> ValueError | None:
    """Why a mask or weights cannot be put on a tensor; ``None`` if it is floating point and tells samples apart.

    Args:
        tensor: what a layer took or gave.
        leading: its first axes as they should be: (B,), or (R, S) where samples share rows.
        place: what it is, for the message.
    """
    if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
        return ValueError(
            f"{place} is no floating-point tensor, but {type(tensor).__name__}. Choose another site or measure, or "
            "another layer with output_layer='…'."
        )
    if tensor.shape[: len(leading)] == leading:
        return None
    rows, *rest = leading
    if rest:
        return ValueError(
            f"{place} has shape {tuple(tensor.shape)}, but the microbatch has {rows} packed rows of {rest[0]} "
            "tokens, so it is not known which part is which sample's. Let the layer take all tokens of all rows, "
            "choose another site or measure, or name a layer that does with output_layer='…'."
        )
    return ValueError(
        f"{place} has first axis {len(tensor) if tensor.ndim else 'none'}, but the microbatch has {rows} "
        "samples, so its rows do not belong to samples. Choose another site or measure, or name the layer whose "
        "tensors keep the sample axis first with output_layer='…'."
    )


class InputMask:
    """A mask on the batch's first tensor, or, where that holds integers, on the output of the token embedding."""

    def __init__(self, norm: int | None) -> None:
        self._norm = norm
        self._hook: RemovableHandle | None = None
        self._mask: Tensor | None = None
        self._leading: tuple[int, ...] = ()
        self._places: Places | None = None
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
        self.applied = True
        return self._masked(output, f"The tensor at site='input' ({type(module).__name__})")

    def _masked(self, tensor: Tensor, place: str) -> Tensor:
        assert self._mask is not None, "open() comes before"
        refusal = rows_refusal(tensor, self._leading, place)
        if refusal is not None:
            raise refusal
        # Models do write to their inputs in place.
        return masked(tensor, self._mask, self._norm, copy=True, places=self._places)

    def open(self, batch: Any, mask: Tensor, leading: tuple[int, ...], places: Places | None = None) -> Any:
        """The batch to forward.

        Args:
            batch: a microbatch.
            mask: see :func:`masked`.
            leading: see :func:`rows_refusal`.
            places: see :func:`masked`.

        Raises:
            ValueError: if its first tensor holds integers, and the model has no token embedding.
        """
        first = tensors_of(batch)[0]
        self._mask, self._leading, self._places = mask, leading, places
        self._at_embedding = not first.is_floating_point()
        self.applied = not self._at_embedding
        if not self._at_embedding:
            return replace_first_tensor(batch, lambda tensor: self._masked(tensor, "The batch's first tensor"))
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
