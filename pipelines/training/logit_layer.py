"""The layer that makes the logits, found by what it puts out, and what enters it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ted_stream.pruning.batches import logits_of
from ted_stream.pruning.output_layer import candidate_layers, named_layer

__all__ = ["LogitLayer"]


class LogitLayer:
    """Watches forward passes of a network for its last layer with a weight, whose output must be the logits.

    Args:
        network: outside of compiled code and wrappers.
        name: dotted, of the layer, where it is not to be looked for.
    """

    def __init__(self, network: nn.Module, name: str | None = None) -> None:
        self._network = network
        self.layer = None if name is None else named_layer(network, name)

    def watch(self, forward: Callable[[], Any]) -> tuple[Any, Tensor]:
        """The outputs of a forward pass, and the layer's input in it, (B, …, D), detached.

        Raises:
            ValueError: if the layer that ran last did not make the logits, or did not run.
        """
        last: list[tuple[nn.Module, Tensor, Any]] = []

        def note(layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            last[:] = [(layer, inputs[0], output)]  # of one layer alone, so that no others' tensors live on

        layers = [self.layer] if self.layer is not None else list(candidate_layers(self._network).values())
        handles = [layer.register_forward_hook(note) for layer in layers]
        try:
            outputs = forward()
        finally:
            for handle in handles:
                handle.remove()
        if not last or (self.layer is None and last[0][2] is not logits_of(outputs)):
            raise ValueError(
                f"The layer of {type(self._network).__name__} that makes the logits is not found: the last one with a "
                "weight that ran does not put them out as they are. Name it with pruning.output_layer=…, or choose a "
                "method that needs no features."
            )
        self.layer, features, _ = last[0]
        return outputs, features.detach()

    @property
    def has_bias(self) -> bool:
        """Whether the layer has a bias."""
        return isinstance(getattr(self.layer, "bias", None), Tensor)
