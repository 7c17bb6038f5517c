"""Which of the layers that were watched is the output layer, and whether all that it is needed for is right there."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.utils.hooks import RemovableHandle

from ted_stream.pruning.output_layer import is_compiled, is_made_of, trace_back

__all__ = ["Call", "Candidate", "LayerSearch"]


@dataclass(eq=False)
class Call:
    """One call of a layer within a forward pass.

    Args:
        chosen: whether its output is what the loss is made of, so that its mask and its weights count.
        node: of the autograd graph, that made its output.
        features: (B, …, D) what went in, detached.
        is_half: whether what came out is of half precision, which may be widened before anybody sees it.
        masked: whether the mask was put on.
        refusal: why a mask or weights do not fit its tensors, in case it is chosen.
    """

    chosen: bool = False
    node: Node | None = None
    features: Tensor | None = None
    is_half: bool = False
    masked: bool = False
    refusal: ValueError | None = None


@dataclass(eq=False)
class Candidate:
    """A layer that makes the logits, or may.

    Args:
        name: dotted.
        module: the layer.
        likely: whether it is what counts where the graph cannot be walked, inside a compiled model.
        chosen: whether it is the output layer.
        acts: whether masks and weights go onto it in this forward pass: once the output layer is known, onto no other.
        handles: of the hooks.
        calls: of this forward pass; compiled code has one record for all of them.
        times: how often it was called.
        compiled: whether that was in compiled code.
    """

    name: str
    module: nn.Module
    likely: bool = False
    chosen: bool = False
    acts: bool = False
    handles: list[RemovableHandle] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    times: int = 0
    compiled: bool = False


@dataclass(frozen=True)
class LayerSearch:
    """Finds the output layer by the graph of a loss, and refuses one at which something would be overlooked.

    Args:
        model: that the layers belong to.
        candidates: the layers that were watched in this forward pass.
        site: where a mask sits: ``features``, ``output`` or ``None``.
        needs_features: whether what goes into the layer is looked at.
        weighs: whether samples may be weighed there.
    """

    model: nn.Module
    candidates: Sequence[Candidate]
    site: str | None
    needs_features: bool
    weighs: bool

    def find(self, logits: Tensor | None, loss: Tensor, known: Candidate | None) -> Candidate:
        """The output layer, marked as chosen, and those of its calls that the loss is made of.

        Args:
            logits: what the model put out, where it can be told and has a graph.
            loss: what is about to be differentiated.
            known: the layer, where it has been named or found before.

        Raises:
            ValueError: if the loss hangs on no layer, on several at once, or not on the known one; or if weights or
                a measure there would miss parameters.
        """
        made_by = {
            call.node: candidate for candidate in self.candidates for call in candidate.calls if call.node is not None
        }
        owns_compiled = any(candidate.compiled for candidate in self.candidates)
        of_loss = trace_back(loss, made_by.keys(), owns_compiled=owns_compiled)
        of_logits = of_loss if logits is None else trace_back(logits, made_by.keys(), owns_compiled=owns_compiled)
        in_loss = list(dict.fromkeys(made_by[node] for node in of_loss.met))
        if of_loss.is_recomputed and (known is None or self.weighs):
            raise ValueError(
                "The loss comes out of a reentrant activation checkpoint, which hides the layers in it, so the layer "
                "that makes the logits cannot be found. Checkpoint with use_reentrant=False."
            )
        if known is None:
            in_logits = list(dict.fromkeys(made_by[node] for node in of_logits.met))
            chosen = self._choose(logits, in_loss, in_logits, is_hidden=of_logits.is_hidden)
            chosen.chosen = True
        else:
            chosen = known
            if chosen.times and not chosen.compiled and chosen not in in_loss:
                raise self._independent(chosen, in_loss)
        for call in chosen.calls:
            call.chosen = call.node is None or call.node in of_loss.met
        self._refuse_calls_in_a_row(chosen)
        if self.weighs and len(in_loss) > 1:
            raise self._several(in_loss)
        self._refuse_overlooked(chosen, of_logits.leaves, of_loss.leaves, is_known=known is not None)
        return chosen

    @staticmethod
    def _refuse_calls_in_a_row(chosen: Candidate) -> None:
        nodes = [call.node for call in chosen.calls if call.node is not None]
        if len(nodes) > 1 and is_made_of(nodes, nodes):
            raise ValueError(
                f"The layer {chosen.name!r} is called {len(nodes)} times in a forward pass, and one call takes what "
                "another gave, so samples cannot be measured or weighed at the last one alone. Give the logits a "
                "layer of their own, or choose another site, measure or method."
            )

    def _choose(
        self, logits: Tensor | None, in_loss: list[Candidate], in_logits: list[Candidate], *, is_hidden: bool
    ) -> Candidate:
        compiled = [candidate for candidate in self.candidates if candidate.compiled]
        # What is met behind compiled code tells nothing of the layers in it.
        found = compiled if is_hidden else list(dict.fromkeys([*in_logits, *in_loss, *compiled]))
        if not found:
            raise ValueError(
                f"The loss hangs on no linear layer or convolution of {type(self.model).__name__} that can be seen, "
                "so the layer that makes the logits cannot be found. Name it with output_layer='…', or put the mask "
                "at site='input'."
            )
        if len(found) > 1:
            raise self._several(found)
        if not is_hidden and found[0] not in in_loss:
            raise self._independent(found[0], in_loss)
        if is_compiled(self.model):
            self._check_shapes(found[0], logits)
        return found[0]

    def _refuse_overlooked(
        self, chosen: Candidate, in_logits: Sequence[Tensor], in_loss: Sequence[Tensor], *, is_known: bool
    ) -> None:
        """Refuse parameters between the layer and the loss that would be overlooked there."""
        if self.weighs and in_loss:
            raise ValueError(
                f"The loss hangs on trainable parameters beside the output of the layer {chosen.name!r}: "
                f"{self._named(in_loss)}. Weights on samples at that layer would miss their gradients. Give the logits "
                "a layer of their own that nothing trainable follows, or choose a method that weighs no samples, such "
                "as TED or RandomPruning."
            )
        if self.needs_features and in_logits:
            raise ValueError(
                f"The logits are made of trainable parameters beside the output of the layer {chosen.name!r}: "
                f"{self._named(in_logits)}. The gradient at the last layer is not what its input and the logits say "
                "then. Let that layer make the logits, or choose a measure that asks for no features, such as "
                "ErrorNorm."
            )
        matrices = [leaf for leaf in in_logits if leaf.ndim > 1]
        if not is_known and self.site is not None and matrices:
            raise ValueError(
                f"The logits are made of trainable parameters that belong to no layer which can be watched: "
                f"{self._named(matrices)}. The layer before them, {chosen.name!r}, is not the output layer. Put them "
                f"into an nn.Linear, say output_layer={chosen.name!r} if that layer is the one to measure at, or put "
                "the mask at site='input'."
            )

    def _named(self, leaves: Sequence[Tensor]) -> str:
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        shown = [f"{names.get(id(leaf), 'one outside of the model')!r} {tuple(leaf.shape)}" for leaf in leaves[:4]]
        return ", ".join(shown) + (f" and {len(leaves) - 4} more" if len(leaves) > 4 else "")

    def _several(self, found: list[Candidate]) -> ValueError:
        names = ", ".join(repr(candidate.name) for candidate in found[:4])
        more = f" and {len(found) - 4} more" if len(found) > 4 else ""
        fix = (
            "A weight at one would miss the others: let the loss come through one layer, or choose a method that "
            "weighs no samples, such as TED or RandomPruning."
            if self.weighs
            else f"Name the one that makes the logits, for example output_layer={found[0].name!r}."
        )
        return ValueError(
            f"The loss is made of the outputs of several layers, {names}{more}, so it is not clear at which one to "
            f"measure or weigh samples. {fix}"
        )

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
    def _independent(candidate: Candidate, in_loss: list[Candidate]) -> ValueError:
        others = ", ".join(repr(other.name) for other in in_loss[:4])
        return ValueError(
            f"The loss does not depend on the output of the layer {candidate.name!r}"
            f"{f' but through {others}' if others else ''}, so it cannot be measured or weighed there. Name the layer "
            "that makes the logits with output_layer='…'."
        )
