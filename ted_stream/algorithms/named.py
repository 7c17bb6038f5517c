"""The pruning methods by name: each makes the four choices of :class:`DataPruning`."""

from typing import Any

from ted_stream.algorithms.data_pruning import DataPruning
from ted_stream.pruning import (
    HighestScores,
    LossImportance,
    MaskGradient,
    SampledScores,
    UniformSample,
    make_schedule,
)

__all__ = ["TED", "RandomPruning"]


class _Named(DataPruning):
    """A pruning method whose ``repr`` shows the arguments that it was made with."""

    _arguments: dict[str, Any]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self._arguments.items())})"


class TED(_Named):
    """Train on the samples of the largest internal generalization distance (Xiao, Li and Nie, 2024).

    Mask gradient × highest scores × roller-coaster × 1 / r_t.

    Args:
        prune_ratio: s in [0, 1), the fraction of samples that the schedule works towards pruning.
        site: where the mask sits: ``input``, ``features`` or ``output`` (see :class:`MaskGradient`).
        beta: shape of the roller-coaster; the paper uses 0.2 to 0.3.
        annealing: γ, the share of epochs at the end on all data; the paper: 0.125 for images, 0 for language.
        schedule: ``roller-coaster``, ``constant``, ``linear`` or ``cosine``.
        alpha: weight of the past in the running score.
        relative: compare measurements of different epochs relative to the mean importance of their time.
        selection: ``top_k`` keeps the highest scores; ``sample`` draws in proportion to score^(1 / temperature).
        temperature: of ``sample``.
        loss_correction: divide the loss by r_t while pruning. The factor is lost on optimizers whose updates do not
            depend on the scale of the gradient (Adam, LARS).
        importance: ``mask_gradient``, or ``loss`` for the paper's ablation "TED base on Loss".
        output_layer: name of the layer that makes the logits, where it is not the last ``nn.Linear``.
        seed: of ties and of sampling.
        folder: of the run, a local path or URI; ``{run_name}`` is filled in.

    Raises:
        ValueError: for a value out of range, at construction.
    """

    def __init__(
        self,
        prune_ratio: float,
        *,
        site: str = "features",
        beta: float = 0.25,
        annealing: float = 0.125,
        schedule: str = "roller-coaster",
        alpha: float = 0.9,
        relative: bool = False,
        selection: str = "top_k",
        temperature: float = 1.0,
        loss_correction: bool = True,
        importance: str = "mask_gradient",
        output_layer: str | None = None,
        seed: int = 0,
        folder: str = "ted_stream_runs/{run_name}",
    ) -> None:
        self._arguments = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        if selection not in ("top_k", "sample"):
            raise ValueError(f"selection is {selection!r}, but it must be 'top_k' or 'sample'.")
        if importance not in ("mask_gradient", "loss"):
            raise ValueError(f"importance is {importance!r}, but it must be 'mask_gradient' or 'loss'.")
        mask_gradient = MaskGradient(site, output_layer=output_layer)
        super().__init__(
            importance=mask_gradient if importance == "mask_gradient" else LossImportance(),
            selection=HighestScores() if selection == "top_k" else SampledScores(temperature=temperature, seed=seed),
            schedule=make_schedule(schedule, prune_ratio=prune_ratio, annealing=annealing, beta=beta),
            loss_correction=loss_correction,
            alpha=alpha,
            relative=relative,
            seed=seed,
            folder=folder,
            method="TED",
        )


class RandomPruning(_Named):
    """A fresh uniform sample every epoch, under any keep-ratio schedule: the baseline at an equal saving.

    With ``schedule='constant'`` and no annealing it is the "Random*" of the literature.

    Args:
        prune_ratio: s in [0, 1).
        beta: shape of the roller-coaster.
        annealing: γ, the share of epochs at the end on all data.
        schedule: ``roller-coaster``, ``constant``, ``linear`` or ``cosine``.
        loss_correction: divide the loss by r_t while pruning.
        seed: of the samples.
        folder: of the run, a local path or URI; ``{run_name}`` is filled in.
    """

    def __init__(
        self,
        prune_ratio: float,
        *,
        beta: float = 0.25,
        annealing: float = 0.125,
        schedule: str = "roller-coaster",
        loss_correction: bool = True,
        seed: int = 0,
        folder: str = "ted_stream_runs/{run_name}",
    ) -> None:
        self._arguments = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__(
            importance=None,
            selection=UniformSample(seed=seed),
            schedule=make_schedule(schedule, prune_ratio=prune_ratio, annealing=annealing, beta=beta),
            loss_correction=loss_correction,
            seed=seed,
            folder=folder,
            method="Random",
        )
