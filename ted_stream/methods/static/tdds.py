"""TDDS: the samples whose share in the model's progress varies."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ted_stream.methods.static.measured import finite_scores
from ted_stream.methods.static.static_method import Recorded, Scored, ScoredBatch, StaticMethod
from ted_stream.pruning.batches import logits_of
from ted_stream.pruning.settings import check_number, check_whole

__all__ = ["TDDS"]

_BLOCK = 1 << 16  # samples whose differences are looked at together


@dataclass(frozen=True, kw_only=True)
class TDDS(StaticMethod):
    """How much a sample's contribution to training varies over epochs; the largest are kept (Zhang et al. 2024).

    Its contribution is d_t = Σ_c |p_{t+1,c} (log p_{t+1,c} − log p_{t,c})| (eq. 10). In each window of K epochs, with
    K − 1 such terms, R = ‖d − mean(d)‖₂; the score is Σ_k β (1 − β)^(T−K−k) R_k over k = 0 … T − K.
    Passes after the T-th epoch do not count.

    Args:
        epochs: T, at least K, that the surrogate is trained for.
        window: K, at least 3: of two epochs the one difference is its own mean.
        beta: β in (0, 1], the weight of the latest window.

    Raises:
        ValueError: for a value out of range, at construction.
        TypeError: for a value of another type.
    """

    passes_every_epoch: ClassVar[bool] = True

    epochs: int = 30
    window: int = 10
    beta: float = 0.9

    def __post_init__(self) -> None:
        for name in ("epochs", "window"):
            object.__setattr__(self, name, check_whole(name, getattr(self, name), fix="it is a number of epochs."))
        object.__setattr__(self, "beta", check_number("beta", self.beta, "(0, 1]", fix="the paper uses 0.9."))
        if not 3 <= self.window <= self.epochs:
            raise ValueError(
                f"window is {self.window} of epochs={self.epochs}, but must lie in [3, epochs]: each window's score is "
                "the spread of two differences at least. Take a smaller window, or train the surrogate for longer."
            )

    def of_batch(
        self, scored: ScoredBatch, before: Mapping[str, NDArray[np.float32]], epoch: int
    ) -> Mapping[str, Tensor]:
        """``log_probabilities``, (B, C), of this pass; ``differences``, (B, T − 1), −1 where there was no pass yet.

        Raises:
            ValueError: if the outputs are no logits (B, C).
        """
        logits = logits_of(scored.microbatch.outputs)
        if logits is None or logits.ndim != 2:
            raise ValueError("TDDS needs logits (B, C), one prediction per sample.")
        latest = logits.detach().float().log_softmax(1)
        if not before:
            differences = latest.new_full((len(latest), self.epochs - 1), -1.0)
        else:
            differences = torch.from_numpy(np.array(before["differences"])).to(latest.device)
            if 2 <= epoch <= self.epochs:
                last = torch.from_numpy(np.array(before["log_probabilities"])).to(latest.device)
                differences[:, epoch - 2] = (latest.exp() * (latest - last)).abs().sum(1)
        return {"log_probabilities": latest, "differences": differences}

    def score(self, recorded: Recorded, *, keep: int | None, seed: int) -> Scored:
        """The weighted sum over windows.

        Raises:
            ValueError: if there were not T passes, or the outputs were not finite.
        """
        del keep, seed
        series = recorded.columns["differences"]
        missing = np.flatnonzero(series[0] == -1)
        if len(missing):
            raise ValueError(
                f"TDDS has differences of {self.epochs - 1 - len(missing)} pairs of epochs, but epochs={self.epochs} "
                f"asks for {self.epochs - 1}. Train the surrogate for {self.epochs} epochs, or set epochs to as many "
                "as it was trained for."
            )
        scores = [self._of_series(series[at : at + _BLOCK]) for at in range(0, len(series), _BLOCK)]
        return Scored(scores=finite_scores(np.concatenate(scores), self))

    def _of_series(self, series: NDArray[np.float32]) -> NDArray[np.float64]:
        d, score = series.astype(np.float64), np.zeros(len(series))
        for k in range(self.epochs - self.window + 1):
            part = d[:, k : k + self.window - 1]
            spread = np.linalg.norm(part - part.mean(1, keepdims=True), axis=1)
            score += self.beta * (1 - self.beta) ** (self.epochs - self.window - k) * spread
        return score
