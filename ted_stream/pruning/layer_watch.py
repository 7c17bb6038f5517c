"""Hooks at the output layer: a mask on its input or output, weights on its gradient, its features."""

import functools
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.utils.hooks import RemovableHandle

from ted_stream.pruning.masks import masked, rows_refusal
from ted_stream.pruning.output_layer import (
    candidate_layers,
    is_compiled,
    layer_name,
    layers_reached,
    likely_output_layer,
    named_layer,
)
from ted_stream.pruning.weights import weighted

__all__ = ["Candidate", "LayerWatch"]


@dataclass(eq=False)
class Candidate:
    """A layer that makes the logits, or may.

    Args:
        name: dotted.
        module: the layer.
        likely: whether it is what counts where the graph cannot be walked, inside a compiled model.
        chosen: whether it is the output layer.
        handles: of the hooks.
        nodes: of the autograd graph, that made its outputs of this forward pass.
        features: (B, …, D) what went in last, detached.
        called: whether this forward pass reached it.
        compiled: whether that was in compiled code.
        masked: whether the mask was put on.
        refusal: why a mask or weights do not fit its tensors, in case it is chosen.
    """

    name: str
    module: nn.Module
    likely: bool = False
    chosen: bool = False
    handles: list[RemovableHandle] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    features: Tensor | None = None
    called: bool = False
    compiled: bool = False
    masked: bool = False
    refusal: ValueError | None = None


class LayerWatch:
    """Watches the output layer, and finds out from the first loss which layer that is.

    Until a loss has been seen, every layer with a weight matrix is watched. The graph that made the logits, walked
    back, tells which of them made the logits, before the backward pass; the others' masks and weights then have no
    effect on it, and their hooks go when it is over. Compiled code has no graph to walk: there the likely layer counts.

    Args:
        site: where a mask sits: ``features``, ``output`` or ``None``.
        norm: of the mask's gradient.
        keep_features: whether to keep what goes into the layer.
    """

    def __init__(self, *, site: str | None, norm: int | None, keep_features: bool) -> None:
        self._site = site
        self._norm = norm
        self._keep_features = keep_features
        self._active = False
        self._settled = False
        self._mask: Tensor | None = None
        self._weights: Tensor | None = None
        self._candidates: list[Candidate] = []
        self.chosen: Candidate | None = None

    def attach(self, model: nn.Module, name: str | None) -> None:
        """Hook the layer of that name, else every layer that may be the one; let go of an earlier model.

        Raises:
            ValueError: if no layer is called so.
        """
        self.detach()
        self._model_type = type(model).__name__
        self._is_compiled = is_compiled(model)
        if name is not None:
            layer = named_layer(model, name)
            self.chosen = Candidate(layer_name(model, layer), layer, chosen=True)
            self._candidates = [self.chosen]
        else:
            likely = likely_output_layer(model)
            layers = candidate_layers(model)
            self._candidates = [Candidate(name, layer, layer is likely) for name, layer in layers.items()]
        for candidate in self._candidates:
            candidate.handles = [
                candidate.module.register_forward_pre_hook(functools.partial(self._before_layer, candidate)),
                candidate.module.register_forward_hook(functools.partial(self._after_layer, candidate)),
            ]

    def detach(self) -> None:
        """Leave the model as it was."""
        self._drop(self._candidates)
        self.close()
        self.chosen = None
        self._settled = False
        self._candidates = []

    @staticmethod
    def _drop(candidates: list[Candidate]) -> None:
        for candidate in candidates:
            for handle in candidate.handles:
                handle.remove()

    def open(self, mask: Tensor | None, weights: Tensor | None) -> None:
        """Before the forward pass.

        Args:
            mask: (B,) ones that require a gradient, where there is a site.
            weights: (B,) of the samples, or ``None``.
        """
        self._active, self._mask, self._weights = True, mask, weights
        for candidate in self._candidates:
            candidate.nodes, candidate.features, candidate.refusal = [], None, None
            candidate.called = candidate.compiled = candidate.masked = False

    # Within the forward pass, and again within the backward pass where activations are recomputed

    def _watches(self, candidate: Candidate) -> bool:
        # A compiled model has no graph to tell by which layer counts.
        compiling = torch.compiler.is_compiling()
        return self._active and (candidate.chosen or candidate.likely or not compiling)

    @staticmethod
    def _fits(candidate: Candidate, tensor: Any, rows: Tensor, place: str) -> bool:
        refusal = rows_refusal(tensor, len(rows), f"The tensor at {place} ({type(candidate.module).__name__})")
        if refusal is None:
            return True
        if candidate.chosen:
            raise refusal
        candidate.refusal = refusal
        return False

    def _gate(self, candidate: Candidate) -> Candidate | None:
        return None if candidate.chosen or torch.compiler.is_compiling() else candidate

    def _before_layer(self, candidate: Candidate, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not self._watches(candidate):
            return None
        if not args:
            if self._site == "features" or self._keep_features:
                candidate.refusal = ValueError(
                    f"{type(module).__name__}, the layer at site='features', is called with keyword arguments alone, "
                    "so its input cannot be watched. Call it with the features as first argument, or choose another "
                    "site, such as 'output', or measure."
                )
            return None
        first = args[0]
        if self._keep_features and isinstance(first, Tensor):
            candidate.features = first.detach()
        if self._site != "features" or self._mask is None:
            return None
        # Through what is frozen nothing is differentiated; a mask there would keep its activations for nothing.
        frozen = isinstance(first, Tensor) and not first.requires_grad
        if frozen and not candidate.chosen and not any(weight.requires_grad for weight in module.parameters()):
            return None
        if not self._fits(candidate, first, self._mask, "site='features'"):
            return None
        candidate.masked = True
        return masked(first, self._mask, self._norm, copy=False, candidate=self._gate(candidate)), *args[1:]

    def _after_layer(self, candidate: Candidate, module: nn.Module, args: Any, output: Any) -> Any:
        del module, args
        if not self._watches(candidate):
            return None
        candidate.called = True
        trains = isinstance(output, Tensor) and output.requires_grad
        mask = self._mask if self._site == "output" and (trains or candidate.chosen) else None
        if mask is not None and self._fits(candidate, output, mask, "site='output'"):
            candidate.masked = True
            gate = self._gate(candidate)
            # Models do write to their logits in place; copies of what all layers put out would be too much.
            output = masked(output, mask, self._norm, copy=gate is None, candidate=gate)
        weights = self._weights if trains else None
        if weights is not None and self._fits(candidate, output, weights, "the output layer's output"):
            output = weighted(output, weights, self._gate(candidate))
        if torch.compiler.is_compiling():
            candidate.compiled = True
        elif not self._settled and isinstance(output, Tensor) and output.grad_fn is not None:
            candidate.nodes.append(output.grad_fn)
        return output

    # Between the forward and the backward pass

    def settle(self, logits: Tensor | None, loss: Tensor) -> None:
        """Know the output layer, and that this forward pass went through it.

        Args:
            logits: what the model put out, where it can be told.
            loss: what is about to be differentiated.

        Raises:
            ValueError: if the loss hangs on no layer, on several at once, or not on the one that was named; or if the
                layer's tensors do not fit the samples.
        """
        if not self._settled:
            made_by = {node: candidate.name for candidate in self._candidates for node in candidate.nodes}
            reached, is_hidden = layers_reached(loss, made_by)
            if self.chosen is None:
                of_logits = reached
                if logits is not None and logits.grad_fn is not None:
                    of_logits, is_hidden = layers_reached(logits, made_by)
                self._choose(logits, reached, of_logits, is_hidden)
            elif self.chosen.called and not self.chosen.compiled and self.chosen.name not in reached:
                raise self._independent(self.chosen.name)
        chosen = self.chosen
        assert chosen is not None
        if chosen.refusal is not None:
            raise chosen.refusal
        if not chosen.called or (self._site is not None and not chosen.masked):
            raise ValueError(
                f"The forward pass did not reach the layer at site={self._site or 'output'!r}, {chosen.name!r}, so it "
                "cannot be measured or weighed there. Name the layer that makes the logits with output_layer='…', or "
                "choose another site or measure."
            )
        self._settled = True

    def _choose(self, logits: Tensor | None, of_loss: list[str], of_logits: list[str], is_hidden: bool) -> None:
        by_name = {candidate.name: candidate for candidate in self._candidates}
        compiled = [candidate.name for candidate in self._candidates if candidate.compiled]
        # What is met behind compiled code tells nothing of the layers in it.
        names = compiled if is_hidden else list(dict.fromkeys([*of_logits, *of_loss, *compiled]))
        if not names:
            raise ValueError(
                f"The loss hangs on no linear layer or convolution of {self._model_type} that can be seen, so the "
                "layer that makes the logits cannot be found. Name it with output_layer='…', or put the mask at "
                "site='input'."
            )
        if len(names) > 1:
            more = f" and {len(names) - 4} more" if len(names) > 4 else ""
            raise ValueError(
                f"The loss is made of the outputs of several layers, {', '.join(map(repr, names[:4]))}{more}, so it "
                "is not clear at which one to measure or weigh samples, and a weight at one would miss the others. "
                f"Name the one that makes the logits, for example output_layer={names[0]!r}."
            )
        if not is_hidden and names[0] not in of_loss:
            raise self._independent(names[0])
        if self._is_compiled:
            self._check_shapes(by_name[names[0]], logits)
        self.chosen = by_name[names[0]]
        self.chosen.chosen = True

    def _check_shapes(self, candidate: Candidate, logits: Tensor | None) -> None:
        """Where compiled code may hide a layer, its weight's shape is all that can be compared with the logits."""
        weight = getattr(candidate.module, "weight", None)
        if logits is not None and isinstance(weight, Tensor) and not set(weight.shape) & set(logits.shape[1:]):
            raise ValueError(
                f"In a compiled model the output layer would be {candidate.name!r}, but its weight of shape "
                f"{tuple(weight.shape)} makes no logits of shape {tuple(logits.shape)}. Name the layer that makes "
                "them with output_layer='…'."
            )

    @staticmethod
    def _independent(name: str) -> ValueError:
        return ValueError(
            f"The loss does not depend on the output of the layer {name!r}, so it cannot be measured or weighed "
            "there. Name the layer that makes the logits with output_layer='…'."
        )

    def close(self) -> None:
        """After the backward pass: what follows is left alone, and the layers that were not chosen are let go."""
        self._active, self._mask, self._weights = False, None, None
        if self._settled:
            self._drop([candidate for candidate in self._candidates if not candidate.chosen])
            self._candidates = [candidate for candidate in self._candidates if candidate.chosen]
        for candidate in self._candidates:
            candidate.nodes, candidate.features = [], None
