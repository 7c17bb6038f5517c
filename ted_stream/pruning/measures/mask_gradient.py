"""How the loss answers to a mask on the sample (TED)."""

from dataclasses import dataclass

from ted_stream.pruning.measures.measure import Measure, Microbatch

__all__ = ["SITES", "MaskGradient"]

SITES = ("input", "features", "output")


@dataclass(frozen=True)
class MaskGradient(Measure):
    """|∂ℓ_k/∂δ_k| at δ_k = 1 (TED, eqs. 12 and 18): how the sample's own loss answers to its mask.

    A mask of ones on one tensor x_k of the sample's forward pass, whose gradient the training step's own backward
    pass leaves. What the trainer multiplied the loss by is divided out, and so is the sample's share in a mean loss
    (a sum has none): a property of the sample, the same at every batch, microbatch and world size.

    One scalar per sample has a false zero: at the logits it is |E_p[z] − z_y|, where the two terms cancel for a sample
    at the decision boundary. One mask entry per entry of x_k, and a norm of their gradients, cannot cancel.

    Takes no memory of the size of the tensor beside it, but at the input and for one product in the backward pass.

    Args:
        site: where the mask sits. ``input``: the batch's first tensor, or the output of the token embedding where
            that tensor holds integers. ``features``: the input of the output layer. ``output``: its output.
        norm: ``None``: one scalar mask per sample. 1 or 2: the norm of x_k ⊙ ∂ℓ_k/∂x_k, over all axes but that of the
            samples (for sequences: tokens and features).
    """

    needs_loss = True

    site: str = "features"  # pyright: ignore
    norm: int | None = None

    def __post_init__(self) -> None:
        if self.site not in SITES:
            raise ValueError(f"site is {self.site!r}, but the mask can sit at one of {', '.join(map(repr, SITES))}.")
        if isinstance(self.norm, bool) or self.norm not in (None, 1, 2) or isinstance(self.norm, float):
            raise ValueError(
                f"norm is {self.norm!r}, but must be None (one scalar mask per sample), 1 or 2 (the norm over a mask "
                "entry per feature)."
            )

    def values(self, microbatch: Microbatch) -> None:
        """Nothing before the backward pass."""
        del microbatch
