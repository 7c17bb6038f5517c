"""A surrogate: what is trained to score samples, and what it tells of them."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ted_stream.engine import PruningEngine, Ranks
from ted_stream.engine.generators import seed_generators
from ted_stream.files import join
from ted_stream.methods.static import Recorded, Scored, StaticMethod, TrajectoryScore
from ted_stream.skip_list import DatasetLayout, SkipList

from ..corpora.prepared import Description
from ..corpora.tokens import bos_id_of
from .checkpoints import load_checkpoint, load_weights
from .datasets import build_loaders
from .loop_host import Host
from .score_settings import Scoring
from .scoring_pass import Passes
from .settings import ConfigError, Settings, epochs, replaced
from .tasks import build_task

__all__ = ["Surrogate", "Told", "num_surrogates", "settings_of_surrogate"]

SCORING = "scoring"
SURROGATES = "surrogates"


@dataclass(frozen=True, kw_only=True)
class Told:
    """What a surrogate told, on rank 0.

    Attributes:
        ids: (M,) int64, ascending, of the samples that it looked at.
        recorded: what the passes wrote of these samples, or of a training the columns of running scores.
        labels: (M,) int64, the class of each; ``None`` where samples have no single class.
        epochs: that it was trained for.
        metrics: test metrics, by name; empty where nothing was trained.
        training_seconds: evaluation and passes apart.
        scoring_seconds: of the passes.
    """

    ids: NDArray[np.int64]
    recorded: Recorded | Mapping[str, NDArray[np.float32]]
    labels: NDArray[np.int64] | None
    epochs: int
    metrics: dict[str, float]
    training_seconds: float
    scoring_seconds: float

    def scored(self, method: StaticMethod | TrajectoryScore, *, keep: int | None, seed: int) -> Scored:
        """The scores of its samples."""
        if isinstance(method, StaticMethod):
            assert isinstance(self.recorded, Recorded)
            return method.score(self.recorded, keep=keep, seed=seed)
        assert not isinstance(self.recorded, Recorded)
        return method.static_scores(self.recorded)


def num_surrogates(scoring: Scoring) -> int:
    """How many surrogates there are."""
    reference = scoring.reference
    return scoring.choice.runs if reference is None else reference.folds or 1


def settings_of_surrogate(scoring: Scoring, number: int) -> Settings:
    """The settings of a surrogate: of several, each with a folder of its own, and runs with seeds of their own."""
    settings = scoring.settings
    if num_surrogates(scoring) == 1:
        return settings
    changes: dict[str, Any] = {"folder": join(settings.folder, f"{SURROGATES}/{number}")}
    if scoring.choice.runs > 1:
        changes["seed"] = settings.seed + number
    return replaced(settings, changes)


class Surrogate:
    """A surrogate that has not been trained: nothing is written before :meth:`tell`.

    Args:
        scoring: the whole run.
        number: of this surrogate, from 0.
        description: of the dataset.
        ranks: that share the work.

    Raises:
        ConfigError: if the method cannot score such samples, or what this surrogate would tell is too little.
    """

    def __init__(self, scoring: Scoring, number: int, description: Description, ranks: Ranks) -> None:
        self.scoring, self.ranks = scoring, ranks
        settings = settings_of_surrogate(scoring, number)
        seed_generators(settings.seed)
        self.method, self.passes = scoring.method, None
        reference = scoring.reference
        given = settings.load_path if reference is None else reference.checkpoint
        is_asked_untrained = self._is_asked and not self.is_trained and given is None
        task = build_task(settings.model, description, is_trained=not is_asked_untrained)
        loaders = build_loaders(settings, description, ranks=ranks.world_size)
        data = loaders.prunable
        self.layout: DatasetLayout = data.layout
        self.ids = np.arange(self.layout.num_samples)
        if reference is not None and reference.checkpoint is None:
            trained_on = reference.trained_on(len(self.ids), seed=scoring.settings.seed)[number]
            self._train_on(data, trained_on)
            if reference.folds is not None:
                self.ids = np.flatnonzero(~trained_on)
        if isinstance(self.method, TrajectoryScore):
            _refuse_too_few_epochs(self.method, settings)
            method = _labelled(self.method) if description.classes else self.method
            self.host = Host(settings, task, loaders, method=method)
            return
        self.host = Host(settings, task, loaders, after_epoch=self._after_epoch)
        count = num_surrogates(scoring)
        self.passes = Passes(
            self.method,
            self.host,
            self.ids,
            Path(scoring.settings.folder) / SCORING / str(number),
            output_layer=settings.pruning.output_layer,
            label=f"surrogate {number + 1} of {count}: " if count > 1 else "",
            bos_id=bos_id_of(settings.data.path) if self.method.needs_tokens else None,
        )
        ranks.on_every_rank(self.passes.rehearse)
        if given is not None:
            self._load(given)

    def _train_on(self, data: Any, marks: NDArray[np.bool_]) -> None:
        names = {"epoch": 0, "method": "Reference", "run": self.scoring.settings.run_name}
        data.fixed_skip_list = SkipList.from_keep_mask(data.layout, marks, keep_ratio=float(marks.mean()), **names)
        self.ranks.on_every_rank(lambda: data.activate(data.fixed_skip_list, sample_ids=False))

    def _after_epoch(self, epoch: int) -> None:
        assert self.passes is not None
        self.passes.after_epoch(epoch)

    def _load(self, path: str) -> None:
        state = self.ranks.on_every_rank(lambda: load_checkpoint(path))
        try:
            load_weights(self.host.network, state["network"])
        except RuntimeError as error:
            raise ConfigError(
                f"the checkpoint {path} is of another model than the config's ({str(error).splitlines()[-1].strip()}); "
                "score with the config that it was trained with."
            ) from error
        self.host.frozen.refuse_other(state["frozen"], path)
        self.host.epoch = state["counts"][0]

    def tell(self) -> Told | None:
        """Train, score, and tell on rank 0; collective."""
        trained = self.host.fit() if self.is_trained else None
        told = {
            "ids": self.ids,
            "epochs": self.host.epoch,
            "metrics": {} if trained is None else trained.metrics,
            "training_seconds": 0.0 if trained is None else trained.seconds,
        }
        if self.passes is None:
            assert trained is not None
            assert trained.engine is not None
            recorded, labels = self._of_training(trained.engine)
            return None if self.ranks.rank else Told(recorded=recorded, labels=labels, scoring_seconds=0.0, **told)
        if trained is None:
            self.passes.make(self.host.epoch)
        if self.ranks.rank:
            return None
        recorded = self.passes.recorded()
        return Told(recorded=recorded, labels=recorded.labels, scoring_seconds=self.passes.seconds, **told)

    @property
    def is_trained(self) -> bool:
        """Whether there is anything to train: not for a method that looks at no surrogate, nor for a given model."""
        reference = self.scoring.reference
        if not self.scoring.choice.train or (reference is not None and reference.checkpoint is not None):
            return False
        return self._is_asked

    @property
    def _is_asked(self) -> bool:
        """Whether the scores are those of a model."""
        return not isinstance(self.method, StaticMethod) or self.method.needs_surrogate

    def _of_training(self, engine: PruningEngine) -> tuple[dict[str, NDArray[np.float32]], NDArray[np.int64] | None]:
        """The columns and the classes of all samples, on rank 0; collective."""
        store, gathered = engine.store, {}
        for name, column in [*store.columns.items(), ("", store.labels)]:
            parts = None if column is None else store.communicator.gather(column)
            gathered[name] = None if parts is None else np.concatenate(parts)
        labels = gathered.pop("")
        return gathered, None if labels is None else labels.astype(np.int64)


def _labelled(method: TrajectoryScore) -> TrajectoryScore:
    """The method, told to note the classes of samples as it measures them, for the file of scores."""
    method = copy(method)
    object.__setattr__(method, "needs_labels", True)  # on this value alone; its repr and settings stay
    return method


def _refuse_too_few_epochs(method: TrajectoryScore, settings: Settings) -> None:
    """Refuse a training that is too short for a sample that is measured in every epoch to have a score.

    Raises:
        ConfigError: it is.
    """
    running, row = method.running(), np.zeros(1, np.int64)
    columns = {name: np.full(1, np.nan, np.float32) for name in running.columns}
    for epoch in range(epochs(settings)):
        running.fold(columns, row, np.full(1, 0.5), epoch)
    if method.lacks_score(columns).any():
        raise ConfigError(
            f"max_duration is {settings.max_duration}, after which no sample has a score of {method}; train for "
            "longer, or set what the method asks for lower."
        )
