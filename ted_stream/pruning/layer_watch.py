"""Hooks at the output layer: a mask on its input or output, weights on its gradient, its features."""

import functools
from typing import Any

import torch
from torch import Tensor, nn

from ted_stream.pruning.layer_choice import Call, Candidate, LayerSearch
from ted_stream.pruning.masks import masked, rows_refusal
from ted_stream.pruning.output_layer import (
    candidate_layers,
    is_compiled,
    layer_name,
    likely_output_layer,
    looks_up,
    named_layer,
)
from ted_stream.pruning.segments import Places
from ted_stream.pruning.weights import weighted

__all__ = ["LayerWatch"]


class LayerWatch:
    """Watches the output layer, and finds out from the first loss which layer that is.

    Until a loss has been seen, every layer with a weight matrix is watched. The graph that made the logits, walked
    back, tells which of them made the logits, before the backward pass; the others' masks and weights then have no
    effect on it, and their hooks go when it is over. Compiled code has no graph to walk: there the likely layer counts.

    Weights are right where all of the loss comes through that layer alone; the walk shows that too, in every pass that
    :meth:`look_again` asks for it.

    Args:
        site: where a mask sits: ``features``, ``output`` or ``None``.
        norm: of the mask's gradient.
        keep_features: whether to keep what goes into the layer.
        weighs: whether there may be weights.
    """

    def __init__(self, *, site: str | None, norm: int | None, keep_features: bool, weighs: bool) -> None:
        self._site = site
        self._norm = norm
        self._keep_features = keep_features
        self._weighs = weighs
        self._active = False
        self._settled = False
        self._mask: Tensor | None = None
        self._weights: Tensor | None = None
        self._places: Places | None = None
        self._model: nn.Module | None = None
        self._candidates: list[Candidate] = []
        self.chosen: Candidate | None = None

    def attach(self, model: nn.Module, name: str | None) -> None:
        """Hook the layer of that name, else every layer that may be the one; let go of an earlier model.

        Raises:
            ValueError: if no layer is called so.
        """
        self.detach()
        self._model = model
        self._is_compiled = is_compiled(model)
        if name is not None:
            layer = named_layer(model, name)
            self.chosen = Candidate(layer_name(model, layer), layer, chosen=True)
            self._hook([self.chosen])
        if name is None or self._weighs:
            self._hook_others()

    def _hook_others(self) -> None:
        assert self._model is not None
        likely = likely_output_layer(self._model)
        known = [candidate.module for candidate in self._candidates]
        layers = candidate_layers(self._model).items()
        self._hook([Candidate(name, layer, layer is likely) for name, layer in layers if layer not in known])

    def _hook(self, candidates: list[Candidate]) -> None:
        for candidate in candidates:
            candidate.handles = [
                candidate.module.register_forward_pre_hook(functools.partial(self._before_layer, candidate)),
                candidate.module.register_forward_hook(functools.partial(self._after_layer, candidate)),
            ]
        self._candidates += candidates

    def look_again(self) -> None:
        """Let the next loss be looked at as the first one was: it may be made of other layers by now."""
        if self.chosen is None or not self._settled:
            return
        self._settled = False
        if self._weighs and not self._is_compiled:  # compiled code would be compiled anew for new hooks
            self._hook_others()

    def detach(self) -> None:
        """Leave the model as it was."""
        self._drop(self._candidates)
        self.close()
        self.chosen = self._model = None
        self._settled = False
        self._candidates = []

    @staticmethod
    def _drop(candidates: list[Candidate]) -> None:
        for candidate in candidates:
            for handle in candidate.handles:
                handle.remove()

    def open(
        self, leading: tuple[int, ...], mask: Tensor | None, weights: Tensor | None, places: Places | None = None
    ) -> None:
        """Before the forward pass: see :func:`rows_refusal` for ``leading``, :func:`masked`, and :func:`weighted`."""
        self._active, self._leading, self._places = True, leading, places
        self._mask, self._weights = mask, weights
        for candidate in self._candidates:
            candidate.acts = candidate.chosen or self.chosen is None
            candidate.calls, candidate.times, candidate.compiled = [Call(candidate.chosen)], 0, False

    # Within the forward pass, and again within the backward pass where activations are recomputed

    def _watches(self, candidate: Candidate, args: Any) -> bool:
        # Without gradients it is another use of the model.
        if not self._active or not torch.is_grad_enabled() or looks_up(candidate.module, args):
            return False
        # A compiled model has no graph to tell by which layer counts.
        return candidate.chosen or not torch.compiler.is_compiling() or (candidate.likely and candidate.acts)

    def _fits(self, candidate: Candidate, tensor: Any, place: str) -> bool:
        refusal = rows_refusal(tensor, self._leading, f"The tensor at {place} ({type(candidate.module).__name__})")
        if refusal is None:
            return True
        if candidate.chosen:
            raise refusal
        candidate.calls[-1].refusal = refusal
        return False

    @staticmethod
    def _gate(candidate: Candidate) -> Call | None:
        return None if candidate.chosen or torch.compiler.is_compiling() else candidate.calls[-1]

    def _before_layer(self, candidate: Candidate, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not self._watches(candidate, args):
            return None
        if candidate.times and not torch.compiler.is_compiling():
            candidate.calls.append(Call(candidate.chosen))
        candidate.times += 1
        if not candidate.acts:
            return None
        call = candidate.calls[-1]
        if not args:
            if self._site == "features" or self._keep_features:
                call.refusal = ValueError(
                    f"{type(module).__name__}, the layer at site='features', is called with keyword arguments alone, "
                    "so its input cannot be watched. Call it with the features as first argument, or choose another "
                    "site, such as 'output', or measure."
                )
            return None
        first = args[0]
        if self._keep_features and isinstance(first, Tensor):
            call.features = first.detach()
        if self._site != "features" or self._mask is None:
            return None
        # Through what is frozen nothing is differentiated; a mask there would keep its activations for nothing.
        frozen = isinstance(first, Tensor) and not first.requires_grad
        if frozen and not candidate.chosen and not any(weight.requires_grad for weight in module.parameters()):
            return None
        if not self._fits(candidate, first, "site='features'"):
            return None
        call.masked = True
        return self._masked(candidate, first, copy=False), *args[1:]

    def _masked(self, candidate: Candidate, tensor: Tensor, *, copy: bool) -> Tensor:
        assert self._mask is not None
        gate = self._gate(candidate)
        return masked(tensor, self._mask, self._norm, copy=copy, candidate=gate, places=self._places)

    def _after_layer(self, candidate: Candidate, module: nn.Module, args: Any, output: Any) -> Any:
        del module
        if not self._watches(candidate, args):
            return None
        call = candidate.calls[-1]
        trains = isinstance(output, Tensor) and output.requires_grad
        call.is_half = isinstance(output, Tensor) and output.dtype in (torch.bfloat16, torch.float16)
        if candidate.acts:
            mask = self._mask if self._site == "output" and (trains or candidate.chosen) else None
            if mask is not None and self._fits(candidate, output, "site='output'"):
                call.masked = True
                # Models write to their logits in place; copies of what all layers put out would be too much.
                output = self._masked(candidate, output, copy=self._gate(candidate) is None)
            # That weights do not fit is said before any are there: they may come hours later.
            fits = not self._weighs or not trains or self._fits(candidate, output, "the output layer's output")
            if self._weights is not None and trains and fits:
                output = weighted(output, self._weights, self._gate(candidate))
        if torch.compiler.is_compiling():
            candidate.compiled = True
        elif not self._settled and isinstance(output, Tensor) and output.grad_fn is not None:
            call.node = output.grad_fn
        return output

    # Between the forward and the backward pass

    @property
    def _call(self) -> Call | None:
        return None if self.chosen is None else next((call for call in self.chosen.calls if call.chosen), None)

    @property
    def features(self) -> Tensor | None:
        """(B, …, D) what went into the output layer in this forward pass, detached."""
        return None if self._call is None else self._call.features

    def is_affine(self, logits: Tensor | None) -> Tensor | bool:
        """() whether the logits are W f + b of the output layer and what went into it, by what is finite."""
        features, layer = self.features, None if self.chosen is None else self.chosen.module
        weight, bias = getattr(layer, "weight", None), getattr(layer, "bias", None)
        if not isinstance(weight, Tensor) or weight.ndim != 2 or hasattr(weight, "full_tensor"):
            return True  # sharded, perhaps
        if logits is None or features is None or features.shape[-1] != weight.shape[1]:
            return True
        with torch.no_grad():
            found = torch.nn.functional.linear(features[:8].to(weight.dtype), weight, bias)
        expected = logits.detach()[:8]
        if found.shape != expected.shape:
            return False
        is_half = {weight.dtype, found.dtype, expected.dtype} & {torch.bfloat16, torch.float16}
        bound = 0.05 if is_half or (self._call is not None and self._call.is_half) else 1e-3
        found, expected = found.float(), expected.float()
        is_finite = found.isfinite() & expected.isfinite()
        found, expected = found.where(is_finite, 0), expected.where(is_finite, 0)
        return (found - expected).norm() <= bound * expected.norm() + 1e-6

    def settle(self, logits: Tensor | None, loss: Tensor) -> None:
        """Know the output layer, and that this forward pass went through it.

        Args:
            logits: what the model put out, where it can be told.
            loss: what is about to be differentiated.

        Raises:
            ValueError: if the loss hangs on no layer, on several at once, or not on the one that was named; if weights
                would miss a part of it; or if the layer's tensors do not fit the samples.
        """
        if not self._settled:
            assert self._model is not None
            search = LayerSearch(self._model, self._candidates, self._site, self._keep_features, self._weighs)
            graph = logits if logits is not None and logits.grad_fn is not None else None
            self.chosen = search.find(graph, loss, self.chosen)
        chosen = self.chosen
        assert chosen is not None
        calls = [call for call in chosen.calls if call.chosen]
        for call in calls:
            if call.refusal is not None:
                raise call.refusal
        if not chosen.times or (self._site is not None and not any(call.masked for call in calls)):
            raise ValueError(
                f"The forward pass did not reach the layer at site={self._site or 'output'!r}, {chosen.name!r}, so it "
                "cannot be measured or weighed there. Name the layer that makes the logits with output_layer='…', or "
                "choose another site or measure."
            )
        if chosen.times > 1 and (self._keep_features or self._norm == 2):
            raise ValueError(
                f"The layer {chosen.name!r} is called {chosen.times} times in a forward pass, so a sample has no one "
                "feature vector. Call it once, or choose a measure that asks for none, such as ErrorNorm, or "
                "MaskGradient without a norm."
            )
        self._settled = True

    def close(self) -> None:
        """After the backward pass: what follows is left alone, and the layers that were not chosen are let go."""
        self._active, self._mask, self._weights, self._places = False, None, None, None
        if self._settled:
            self._drop([candidate for candidate in self._candidates if not candidate.chosen])
            self._candidates = [candidate for candidate in self._candidates if candidate.chosen]
        for candidate in self._candidates:
            candidate.calls = []
