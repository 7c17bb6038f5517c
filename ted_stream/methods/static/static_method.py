"""What a static method is: what a pass with a trained surrogate writes of every sample, and the scores made of it."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from ted_stream.pruning.measures import Microbatch

__all__ = ["Recorded", "Scored", "ScoredBatch", "StaticMethod"]


@dataclass(frozen=True, kw_only=True)
class ScoredBatch:
    """A batch of a scoring pass: the surrogate in evaluation mode, no augmentation, every sample once.

    Args:
        microbatch: the batch on the model's device, the outputs, the mean loss, and the input of the output layer where
            the method's ``needs_features`` asks for it.
        model: what was trained.
        forward: outputs of a batch, as the model gives them.
        bos_id: of tokens, the one that the tokenizer begins a sequence with; ``None`` where it has none.
    """

    microbatch: Microbatch
    model: nn.Module
    forward: Callable[[Any], Any]
    bos_id: int | None = None


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """What the passes wrote, N rows each in the order of the sample ids.

    Args:
        columns: by name, (N, …) float32 arrays, memory-mapped where they are large: read them block by block. Of a
            method with ``passes_every_epoch`` a list would not fit, so a column holds what the last pass gave.
        labels: (N,) int64, the class of every sample; ``None`` where samples have no single class.
        has_bias: whether the output layer has a bias; known where ``needs_features``.
    """

    columns: Mapping[str, NDArray[np.float32]]
    labels: NDArray[np.int64] | None = None
    has_bias: bool = False

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))


@dataclass(frozen=True, kw_only=True)
class Scored:
    """What a static method makes of a dataset.

    Args:
        scores: (N,) float32, finite; the highest are kept. NaN of a sample that has none, which is left out.
        weights: (N,) float32 above zero, what each kept sample weighs in the loss; ``None``: all alike.
        left_out: (N,) bool, the samples that are never kept; ``None``: none is.
        note: how many are left out, and why, as "3 without targets"; for people.
    """

    scores: NDArray[np.float32]
    weights: NDArray[np.float32] | None = None
    left_out: NDArray[np.bool_] | None = None
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class StaticMethod(ABC):
    """A method that scores a dataset once, for a subset that later runs train on: a frozen value, as a Method is.

    A surrogate is trained, then every sample passes through it once; :meth:`of_batch` says what is written of each,
    and :meth:`score` makes one score per sample of it. What is written is bounded by N rows of what :meth:`of_batch`
    gives, and never held in memory as a whole by who calls it.

    Attributes:
        needs_features: whether :meth:`of_batch` looks at the input of the output layer.
        needs_labels: whether every sample must have one class.
        needs_tokens: whether samples must be prompts and answers in tokens, of a causal language model.
        needs_count: whether :meth:`score` must know how many samples will be kept.
        passes_every_epoch: a pass after each epoch of the surrogate's training instead of one after the last.
        needs_surrogate: whether a model must be trained at all.
        averages_runs: whether the scores of surrogates of other seeds may be averaged.
    """

    needs_features: ClassVar[bool] = False
    needs_labels: ClassVar[bool] = False
    needs_tokens: ClassVar[bool] = False
    needs_count: ClassVar[bool] = False
    passes_every_epoch: ClassVar[bool] = False
    needs_surrogate: ClassVar[bool] = True
    averages_runs: ClassVar[bool] = False

    @abstractmethod
    def of_batch(
        self, scored: ScoredBatch, before: Mapping[str, NDArray[np.float32]], epoch: int
    ) -> Mapping[str, Tensor]:
        """What is written of a batch.

        Args:
            scored: the batch, and the surrogate.
            before: what the pass before wrote of these samples, (B, …) each; empty in the first pass.
            epoch: epochs that the surrogate was trained for.

        Returns:
            (B, …) float32 by name, detached; the same names and shapes in every batch and pass.
        """

    @abstractmethod
    def score(self, recorded: Recorded, *, keep: int | None, seed: int) -> Scored:
        """The scores of all samples.

        Args:
            recorded: what was written.
            keep: how many will be kept, in [1, N]; ``None`` where that is not known yet.
            seed: of what is drawn, and of ties.

        Raises:
            ValueError: if it cannot be had of these samples, saying why.
        """
