"""What a training step does around its forward and backward passes to measure its samples and to weigh them."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ted_stream.pruning.batches import batch_size, logits_of, loss_shares, tensors_of
from ted_stream.pruning.first_look import FirstLook
from ted_stream.pruning.layer_watch import LayerWatch
from ted_stream.pruning.loss_kinds import Counted, LossFunction
from ted_stream.pruning.masks import InputMask
from ted_stream.pruning.measures import Measure, Microbatch
from ted_stream.pruning.output_layer import is_compiled, shifts_labels
from ted_stream.pruning.segments import Segments

__all__ = ["StepProbe"]


class StepProbe:
    """Measures the samples of a microbatch, and weighs their losses, around its forward and backward pass.

    Per microbatch, in this order: :meth:`before_forward`, the forward pass, :meth:`before_backward`, the backward pass
    of the loss times any factor, :meth:`after_backward`. None of them waits for the device; :meth:`check` may, for the
    first microbatch and for that after :meth:`look_again`. The output layer is found by that microbatch's loss (see
    :class:`LayerWatch`), and so is how the loss is made of the samples' (see :class:`FirstLook`): a mean weighs sample
    k by its share, a sum by 1, and a vector is a loss per sample.

    Args:
        measure: what to measure; ``None``: nothing.
        weighted: whether samples are weighed.
        output_layer: the (end of the) dotted name of the layer that makes the logits; ``None``: find out.
        loss: the model's loss of (outputs, batch), where it has one: a tensor, or a mapping or sequence of which
            :func:`total_loss` is the whole.

    Attributes:
        is_checked: whether :meth:`check` has been called since the start or :meth:`look_again`.
    """

    def __init__(
        self,
        measure: Measure | None,
        *,
        weighted: bool = False,
        output_layer: str | None = None,
        loss: LossFunction | None = None,
    ) -> None:
        self.measure = measure
        self.weighted = weighted
        self.output_layer = output_layer
        self._loss_function = loss
        site = None if measure is None else measure.site
        norm = None if measure is None else measure.norm
        self._watch: LayerWatch | None = None
        if weighted or (measure is not None and measure.needs_layer):
            at_layer = None if site == "input" else site
            keeps_features = measure is not None and measure.needs_features
            self._watch = LayerWatch(site=at_layer, norm=norm, keep_features=keeps_features, weighs=weighted)
        self._input = InputMask(norm) if site == "input" else None
        self._forget()

    def _forget(self) -> None:
        self._rows: int | None = None
        self._segments: Segments | None = None
        self._mask: Tensor | None = None
        self._weights: Tensor | None = None
        self._factor: Tensor | None = None
        self._values: Tensor | None = None
        self._first: FirstLook | None = None
        self.is_checked = False

    @property
    def layer(self) -> str | None:
        """The dotted name of the output layer, as soon as it is known; ``None`` where it is not needed."""
        chosen = None if self._watch is None else self._watch.chosen
        return None if chosen is None else chosen.name

    def attach(self, model: nn.Module) -> None:
        """Hook the model, and let go of an earlier one. The hooks do nothing outside of a measured step.

        Raises:
            ValueError: if no layer is called ``output_layer``.
        """
        self.detach()
        parameter = next((p for p in model.parameters() if p.is_floating_point()), None)
        is_double = parameter is not None and parameter.dtype is torch.float64
        self._dtype = torch.float64 if is_double else torch.float32
        self._shifted = shifts_labels(model)
        if is_compiled(model):
            torch.compiler.reset()  # code that was compiled before this would go on without the hooks
        if self._watch is not None:
            self._watch.attach(model, self.output_layer)
        if self._input is not None:
            self._input.attach(model)

    def look_again(self) -> None:
        """Let the next microbatch be looked at as the first one was, and :meth:`check` tell what it shows."""
        self._first = None
        self.is_checked = False
        if self._watch is not None:
            self._watch.look_again()

    def detach(self) -> None:
        """Leave the model as it was before."""
        if self._watch is not None:
            self._watch.detach()
        if self._input is not None:
            self._input.detach()
        self._forget()

    def before_forward(self, batch: Any, weights: Tensor | None = None, segments: Segments | None = None) -> Any:
        """Open a fresh mask and take the weights.

        Args:
            batch: a microbatch.
            weights: (B,) w_k > 0 of its samples' losses, on the batch's device; ``None``: all are 1. The measure is
                that of the unweighted loss (not finite for a weight of 0), as far as no layer mixes samples.
            segments: where samples share rows: n samples then, with (n,) weights and measurements.

        Returns:
            The batch to forward; another one only with a mask at the input.

        Raises:
            ValueError: if there are weights without ``weighted=True``, or not one per sample; or if a token is
                predicted from another sample's, or from padding.
        """
        if self._watch is None and self._input is None and self.measure is None and weights is None:
            return batch
        rows = self._rows = batch_size(batch)
        device = tensors_of(batch)[0].device
        segments = self._segments = None if segments is None else segments.to(device)
        size = rows if segments is None else segments.samples
        if segments is not None and self._shifted:
            segments.refuse_joined()
        if weights is not None and (not self.weighted or weights.shape != (size,)):
            raise ValueError(
                f"Weights of shape {tuple(weights.shape)} came with a microbatch of {size} samples, to a probe made "
                f"with weighted={self.weighted}; give one weight per sample to a probe made with weighted=True."
            )
        site = None if self.measure is None else self.measure.site
        self._weights, self._mask = weights, None
        if site is not None:
            self._mask = torch.ones(size, dtype=self._dtype, device=device, requires_grad=True)
        leading, places = (rows,), None
        if segments is not None:
            leading, places = tuple(segments.owners.shape), (segments.tokens, segments.lengths)
            weights = None if weights is None else segments.spread(weights)
        if self._watch is not None:
            self._watch.open(leading, None if self._input is not None else self._mask, weights, places)
        if self._input is not None:
            assert self._mask is not None
            return self._input.open(batch, self._mask, leading, places)
        return batch

    def before_backward(self, batch: Any, outputs: Any, loss: Tensor, counted: Counted | None = None) -> None:
        """See the outputs and the loss.

        Args:
            batch: the microbatch, with as many samples as before the forward pass.
            outputs: of the model.
            loss: () or (B,), unscaled, that is about to be differentiated, times any factor.
            counted: where the trainer counts targets over more than this microbatch (gradient accumulation, ranks).
                Whether the loss goes by that is told by its value in the first microbatch.

        Raises:
            ValueError: if the output layer cannot be found, does not fit the samples or did not make the loss; if the
                number of samples has changed; or if the measure does not exist for such outputs and targets.
        """
        if self._rows is None:
            return
        size = self._rows if self._segments is None else self._segments.samples
        logits = logits_of(outputs)
        # A mask at the input asks nothing of the outputs.
        _refuse_other_sizes(self._rows, batch, logits if self._input is None else None)
        if not loss.requires_grad:
            raise ValueError(
                "The loss requires no gradient, so it hangs on none of the model's layers: nothing can be measured "
                "or weighed. Train at least one parameter of the model."
            )
        _refuse_other_shapes(loss, size)
        if self._watch is not None:
            self._watch.settle(logits, loss)
        if self._input is not None and not self._input.applied:
            raise ValueError(
                "The forward pass did not reach the token embedding, so no mask gradient exists at site='input'. "
                "Choose another site."
            )
        if self.measure is not None:
            shifted, segments = self._shifted, self._segments
            function = self._loss_function if segments is None else None  # it takes whole rows
            rest = {"shifted": shifted, "loss_function": function, "segments": segments}
            microbatch = Microbatch(batch=batch, outputs=outputs, loss=loss, size=size, **rest)
            self._measure(self.measure, microbatch, counted)

    def _measure(self, measure: Measure, microbatch: Microbatch, counted: Counted | None) -> None:
        if self._first is None:
            self._first = FirstLook(measure, microbatch, counted)
            microbatch = replace(microbatch, batch=self._first.batch)
            if self._watch is not None and measure.needs_features:
                self._first.layer = self._watch.is_affine(logits_of(microbatch.outputs))
        if self._mask is not None:
            self._own, self._all, self._counted, self._factor = 1, 1, counted, None
            if microbatch.loss.shape != (microbatch.size,):
                batch, segments = microbatch.batch, microbatch.segments
                self._own, self._all = loss_shares(batch, shifted=self._shifted, segments=segments)
            microbatch.loss.register_hook(self._note_factor)
            return
        chosen = None if self._watch is None else self._watch.chosen
        has_bias = chosen is not None and getattr(chosen.module, "bias", None) is not None
        features = None if self._watch is None else self._watch.features
        microbatch = replace(microbatch, reading=self._first.reading, features=features, has_bias=has_bias)
        values = measure.values(microbatch)
        self._values = None if values is None else values.to(self._dtype)

    def _note_factor(self, gradient: Tensor) -> None:
        self._factor = gradient.detach().to(self._dtype)

    def after_backward(self) -> Tensor | None:
        """The microbatch's measurements.

        Returns:
            (B,) float32 (float64 for a float64 model) on the device, detached, not finite where the gradient
            overflowed; for a mask gradient 0 where a sample has no targets. ``None`` without a measure.

        Raises:
            ValueError: if the loss did not depend on where the mask sits.
        """
        if self.measure is None:
            values = None
        elif self.measure.site is None:
            values = self._values
            assert values is not None, "after_backward() follows a backward pass"
        else:
            values = self._mask_gradient()
        if self._watch is not None:
            self._watch.close()
        if self._input is not None:
            self._input.close()
        self._rows = self._segments = self._mask = self._weights = self._values = None
        return values

    def _mask_gradient(self) -> Tensor:
        mask, factor, first = self._mask, self._factor, self._first
        assert mask is not None, "after_backward() follows a backward pass"
        assert first is not None
        if mask.grad is None or factor is None:
            place = "the batch's first tensor or its embedding" if self._input is not None else f"layer {self.layer!r}"
            raise ValueError(
                f"The backward pass of the loss did not come to {place}, so no mask gradient exists. Name the layer "
                "that makes the logits with output_layer='…', or choose another measure."
            )
        all_ = self._all if first.reading is None else first.reading.divisor_of(self._all, self._counted)
        values = mask.grad.detach().abs() * (all_ / factor.abs())
        if isinstance(self._own, Tensor):
            values = values / self._own
        return values if self._weights is None else values / self._weights.abs().to(values.dtype)

    def check(self) -> None:
        """Look at what the first microbatch showed; once, after the first batch. Waits for the device.

        Raises:
            ValueError: if the measure hangs on a loss that is neither a mean nor a sum over samples nor a vector, or
                if targets that must be class probabilities are none.
        """
        was_checked, self.is_checked = self.is_checked, True
        if self._first is not None and not was_checked:
            self._first.check()


def _refuse_other_sizes(size: int, batch: Any, logits: Tensor | None) -> None:
    found = {"the batch before the backward pass": batch_size(batch)}
    if logits is not None:
        found["the model's output"] = len(logits)
    for name, rows in found.items():
        if rows != size:
            raise ValueError(
                f"The microbatch had {size} rows before the forward pass, but {name} has {rows}, so measurements would "
                "go to the wrong samples. Keep all rows, in order."
            )


def _refuse_other_shapes(loss: Tensor, size: int) -> None:
    if loss.numel() != 1 and loss.shape != (size,):
        raise ValueError(
            f"The loss has shape {tuple(loss.shape)}, but must be one number, or {size}, one for each sample of the "
            "microbatch. Take the mean over its other axes."
        )
