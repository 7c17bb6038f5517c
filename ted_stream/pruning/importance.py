"""How important a sample is to training: measured on each microbatch that a training step forwards anyway."""

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ted_stream.pruning.batches import batch_size, loss_shares, per_sample_cross_entropy, tensors_of

__all__ = ["SITES", "Importance", "LossImportance", "MaskGradient", "find_output_layer"]

SITES = ("input", "features", "output")


class Importance(Protocol):
    """Measures samples around the forward and backward pass of a microbatch.

    Per microbatch, in this order: ``before_forward``, the forward pass, ``before_backward`` with the loss that is
    about to be differentiated, the backward pass, ``measure``. Whatever a measurement does, it leaves the loss and
    the parameters' gradients as they are, and adds no device synchronisation.
    """

    def attach(self, model: nn.Module) -> None:
        """Find what is to be watched in the model, and let go of what was attached to before.

        Raises:
            ValueError: if the model has no such place.
        """
        ...

    def before_forward(self, batch: Any) -> Any:
        """The batch to forward."""
        ...

    def before_backward(self, batch: Any, outputs: Any, loss: Tensor) -> None:
        """See the outputs and the unscaled loss of the microbatch."""
        ...

    def measure(self) -> Tensor:
        """(B,) importance I(z) ≥ 0 of the microbatch's samples, on its device; non-finite where it overflowed."""
        ...


def _named_layer(model: nn.Module, name: str) -> nn.Module:
    modules = dict(model.named_modules())
    matches = [found for found in modules if found == name or found.endswith("." + name)]
    if len(matches) != 1:
        raise ValueError(
            f"output_layer is {name!r}, which names {len(matches)} modules of the model; give the dotted name of one, "
            f"for example {[key for key, value in modules.items() if isinstance(value, nn.Linear)][-1:]}."
        )
    return modules[matches[0]]


def _layer_from(model: nn.Module, getter: str) -> nn.Module | None:
    """What the first module with such a method (Hugging Face's models have them) says is the layer."""
    for module in model.modules():
        method = getattr(module, getter, None)
        layer = method() if callable(method) else None
        if isinstance(layer, nn.Module):
            return layer
    return None


def find_output_layer(model: nn.Module, name: str | None = None) -> nn.Module:
    """The layer that makes the logits: its input are the penultimate features.

    A language model's output embedding (Hugging Face's ``get_output_embeddings``), else the last ``nn.Linear`` in
    the order of registration.

    Args:
        model: any module.
        name: the (end of the) dotted name of the layer, where the rule above does not find it.

    Raises:
        ValueError: if there is none.
    """
    if name is not None:
        return _named_layer(model, name)
    layer = _layer_from(model, "get_output_embeddings")
    if layer is not None:
        return layer
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise ValueError(
            f"{type(model).__name__} has no nn.Linear, so its output layer cannot be found; name the layer that "
            "makes the logits with output_layer='…', or put the mask at site='input'."
        )
    return linear[-1]


def _input_embedding(model: nn.Module) -> nn.Module | None:
    layer = _layer_from(model, "get_input_embeddings")
    if layer is not None:
        return layer
    return next((module for module in model.modules() if isinstance(module, nn.Embedding)), None)


def _replace_first_tensor(batch: Any, replace: Any) -> Any:
    """The batch with the first of ``tensors_of(batch)`` replaced."""
    if isinstance(batch, Tensor):
        return replace(batch)
    if isinstance(batch, Mapping):
        first = next(key for key, item in batch.items() if tensors_of(item))
        return {**batch, first: _replace_first_tensor(batch[first], replace)}
    first = next(index for index, item in enumerate(batch) if tensors_of(item))
    replaced = [*batch[:first], _replace_first_tensor(batch[first], replace), *batch[first + 1 :]]
    return tuple(replaced) if isinstance(batch, tuple) else replaced


def _shifts_labels(model: nn.Module) -> bool:
    """Whether the model scores position i against label i + 1 (Composer's HuggingFaceModel tells)."""
    return any(bool(getattr(module, "shift_labels", False)) for module in model.modules())


class MaskGradient:
    """I(z_k) = |∂ℓ_k / ∂δ_k| at δ_k = 1 (TED, eqs. 12 and 18): how the sample's own loss answers to its mask.

    A scalar δ_k per sample is multiplied into one tensor of the forward pass, and the training step's own backward
    pass leaves ∂L/∂δ_k. A hook on the loss sees the factor g that the trainer applied to it (microbatch weight, loss
    scale, loss correction), and sample k has the share w_k in the mean loss, so I = |∂L/∂δ_k| / (g·w_k) is a
    property of the sample: the same at every batch, microbatch and world size.

    Args:
        site: where the mask sits. ``input``: the batch's first tensor, or the output of the token embedding where
            that tensor holds integers. ``features``: the input of the output layer. ``output``: the logits.
        output_layer: the name of the layer that makes the logits, where :func:`find_output_layer` errs.
    """

    def __init__(self, site: str = "features", *, output_layer: str | None = None) -> None:
        if site not in SITES:
            raise ValueError(f"site is {site!r}, but the mask can sit at one of {', '.join(map(repr, SITES))}.")
        self.site = site
        self.output_layer = output_layer
        self._hook: RemovableHandle | None = None
        self._mask: Tensor | None = None
        self._applied = False
        self._masks_embedding = False

    def __repr__(self) -> str:
        return f"MaskGradient({self.site!r}, output_layer={self.output_layer!r})"

    def attach(self, model: nn.Module) -> None:
        """Register the hooks that multiply the mask in; they do nothing outside of a measured step."""
        parameter = next((p for p in model.parameters() if p.is_floating_point()), None)
        is_double = parameter is not None and parameter.dtype is torch.float64
        self._dtype = torch.float64 if is_double else torch.float32
        self._shifted = _shifts_labels(model)
        if self._hook is not None:
            self._hook.remove()
        if self.site == "input":
            self._embedding = _input_embedding(model)
            if self._embedding is not None:
                self._hook = self._embedding.register_forward_hook(self._mask_embedding)
            return
        layer = find_output_layer(model, self.output_layer)
        if self.site == "features":
            self._hook = layer.register_forward_pre_hook(self._mask_features)
        else:
            self._hook = layer.register_forward_hook(self._mask_output)

    def _mask_features(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if not args:
            raise ValueError(
                f"{type(module).__name__}, the layer at site='features', is called with keyword arguments alone, so "
                "its input cannot be masked. Call it with the features as first argument, or choose site='output'."
            )
        return self._multiply(args[0], module), *args[1:]

    def _mask_output(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        del args
        return self._multiply(output, module)

    def _mask_embedding(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        del args
        return self._multiply(output, module) if self._masks_embedding else output

    def _multiply(self, tensor: Tensor, module: nn.Module | None = None) -> Tensor:
        mask = self._mask
        if mask is None:  # evaluation
            return tensor
        if len(tensor) != len(mask):
            raise ValueError(
                f"The tensor at site={self.site!r} ({type(module).__name__}) has first axis {len(tensor)}, but the "
                f"microbatch has {len(mask)} samples, so no mask per sample fits it. Choose another site, or name "
                "the layer whose tensors keep the sample axis first with output_layer='…'."
            )
        self._applied = True
        return tensor * mask.to(tensor.dtype).view(-1, *[1] * (tensor.ndim - 1))

    def before_forward(self, batch: Any) -> Any:
        """Open a fresh mask δ = 1 for the microbatch; at the input, multiply it in."""
        size = batch_size(batch)
        first = tensors_of(batch)[0]
        self._mask = torch.ones(size, dtype=self._dtype, device=first.device, requires_grad=True)
        self._applied = False
        if self.site != "input":
            return batch
        self._masks_embedding = not first.is_floating_point()
        if not self._masks_embedding:
            return _replace_first_tensor(batch, self._multiply)
        if self._embedding is None:
            raise ValueError(
                f"The batch's first tensor holds {first.dtype} and the model has no token embedding, so there is "
                "nothing to mask at site='input': convert the inputs to floating point before the model "
                "(a DataSpec's batch_transforms), or put the mask at site='features'."
            )
        return batch

    def before_backward(self, batch: Any, outputs: Any, loss: Tensor) -> None:
        """Note each sample's share in the loss, and watch the factor that the trainer applies to the loss."""
        del outputs
        if not self._applied:
            raise ValueError(
                f"The forward pass did not reach the layer at site={self.site!r}, so no mask gradient exists. Name "
                "the layer that makes the logits with output_layer='…', or choose another site."
            )
        per_sample = loss.ndim == 1 and loss.numel() == batch_size(batch)
        self._own, self._all = (1, 1) if per_sample else loss_shares(batch, shifted=self._shifted)
        loss.register_hook(self._note_factor)

    def _note_factor(self, gradient: Tensor) -> None:
        self._factor = gradient.detach().to(self._dtype)

    def measure(self) -> Tensor:
        """(B,) float32 (float64 for a float64 model); 0 for a sample without targets."""
        gradient = None if self._mask is None else self._mask.grad
        assert gradient is not None, "measure() follows a backward pass"
        self._mask = None
        importance = gradient.abs() * (self._all / self._factor.abs())
        return importance / self._own if isinstance(self._own, Tensor) else importance


class LossImportance:
    """I(z_k) = ℓ_k, the sample's cross-entropy ("TED base on Loss": TED, Table 6)."""

    def __repr__(self) -> str:
        return "LossImportance()"

    def attach(self, model: nn.Module) -> None:
        """Learn whether the labels are shifted."""
        self._shifted = _shifts_labels(model)

    def before_forward(self, batch: Any) -> Any:
        """Nothing to prepare."""
        return batch

    def before_backward(self, batch: Any, outputs: Any, loss: Tensor) -> None:
        """Compute the losses from the logits."""
        del loss
        self._losses = per_sample_cross_entropy(outputs, batch, shifted=self._shifted)

    def measure(self) -> Tensor:
        """(B,) cross-entropies."""
        return self._losses
