"""One run of a sweep: its data, the prune ratio that saves what is asked for, training, and what came of it."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from omegaconf import OmegaConf

from ted_stream.engine import PruningEngine
from ted_stream.engine.generators import seed_generators
from ted_stream.methods import Method

from ...corpora.prepared import Description, read_description
from ...corpora.regimes import write_regime
from ...training.datasets import build_loaders
from ...training.loop_host import Host
from ...training.score import score
from ...training.score_settings import Scoring, load_scoring
from ...training.settings import ConfigError, Settings, load_settings, replaced
from ...training.shorter import shorter_run, whole_batches
from ...training.tasks import Classification, build_task
from ...training.train import check_data, check_method
from .savings import TOLERANCE, Search, planned_prune_ratio
from .sweep import FULL, SHORTER, Run, regime_of

__all__ = ["Outcome", "check", "dataset_of", "perform"]

SURROGATE_SEEDS = 1000  # a surrogate does not begin at the weights of the run that its scores are for


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of a run; a row of the results.

    Attributes:
        key: of the run.
        regime: its name.
        epochs: of a full-data run.
        saving: asked for; NaN of full data.
        arm: its name.
        seed: of all.
        prune_ratio: that was found; NaN where there is none.
        save_ratio: 1 - forwarded / (N·T), measured; of N those that full data trains on, in whole batches with
            data.drop_last.
        solved: whether that is the saving asked for, within 0.01.
        accuracy: on the test split, of the final weights.
        worst_class: the lowest accuracy of a class.
        cross_entropy: on the test split.
        forwarded: samples that were trained on.
        steps: of the optimizer.
        seconds: of training, tests apart.
        boundary_seconds: of them, between epochs: scores, selection, lists.
        scoring_seconds: of a scoring run before it, its training too.
        returning: share of the kept that the epoch before had pruned, mean over the second half of the pruned epochs.
        curve: of the tests within the run: pairs of seconds and accuracy, one after the other.
    """

    key: str
    regime: str
    epochs: int
    saving: float
    arm: str
    seed: int
    prune_ratio: float
    save_ratio: float
    solved: bool
    accuracy: float
    worst_class: float
    cross_entropy: float
    forwarded: int
    steps: int
    seconds: float
    boundary_seconds: float
    scoring_seconds: float
    returning: float
    curve: list[float]


def dataset_of(run: Run, folder: Path) -> Path:
    """The folder of a run's dataset, which is made where it is missing."""
    regime, rest = regime_of(run.data)
    given = {"of": run.source_digest[:8], **{key: value for key, value in run.data.items() if value is not None}}
    name = "-".join(f"{key}{value}" for key, value in sorted(given.items()))
    out = folder / f"{name}-seed{run.seed}"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f".{out.name}.lock"):
        if not out.exists():
            write_regime(run.source, out, regime, seed=run.seed, **rest)
    return out


def perform(run: Run, data: Path, *, guess: float | None = None) -> Outcome:
    """Train as a run says.

    Args:
        run: what to do.
        data: its dataset.
        guess: a prune ratio that is about right, of a method that decides on its own counts.
    """
    with tempfile.TemporaryDirectory() as folder:
        return _Performed(run, data, Path(folder), guess).outcome()


def check(run: Run, data: Path) -> None:
    """Refuse a run that cannot be done, before any is.

    Args:
        run: to do.
        data: a dataset of as many samples as its own, or about.

    Raises:
        ConfigError: for settings that are wrong, naming the arm.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            _Performed(run, data, Path(folder), None).check()
        except ValueError as error:
            raise ConfigError(f"{run.arm}, {run.epochs} epochs, saving {run.saving}: {error}") from error


class _Performed:
    def __init__(self, run: Run, data: Path, folder: Path, guess: float | None) -> None:
        self.run, self.folder, self.guess = run, folder, guess
        self.description = read_description(data)
        self.samples = self.description.samples["train"]
        self.config = folder / "config.yaml"
        base = {
            "run_name": "run",
            "trainer": "loop",
            "seed": run.seed,
            "progress_bar": False,
            "max_duration": f"{run.epochs}ep",
            "data": {"path": str(data), "in_memory": True, "skip_list": None},
        }
        OmegaConf.save(OmegaConf.merge({"eval_interval": f"{run.epochs}ep"}, run.train, base), self.config)

    def check(self) -> None:
        if self.run.arm == FULL:
            settings = load_settings(self.config, ["pruning.method=none"])
        elif "score" in self.run.given:
            settings = self._scoring().settings
        else:
            settings = self._settings(0.5)
            self._planned()
        check_data(settings, self.description, 1)
        check_method(settings)

    def outcome(self) -> Outcome:
        run = self.run
        if run.arm == FULL:
            return self._train(load_settings(self.config, ["pruning.method=none"]))
        if run.arm == SHORTER:
            return self._train(self._shorter())
        if "score" in run.given:
            return self._on_a_subset()
        ratio = self._planned()
        if ratio is not None:
            return self._train(self._settings(ratio), prune_ratio=ratio)
        assert run.saving is not None
        saving, tried = run.saving, []
        search = Search(saving, self.guess or saving)
        while not tried or not search.is_over(tried[-1].save_ratio):
            tried.append(self._train(self._settings(search.ratio), prune_ratio=search.ratio))
        return min(tried, key=lambda one: abs(one.save_ratio - saving))

    # The saving --------------------------------------------------------------------------------------------------

    def _settings(self, prune_ratio: float) -> Settings:
        overrides = [f"pruning.{name}={_text(value)}" for name, value in self.run.given.items()]
        return load_settings(self.config, [*overrides, f"pruning.prune_ratio={prune_ratio!r}"])

    def _planned(self) -> float | None:
        settings = self._settings(0.5)
        saving, method, data = self.run.saving, settings.pruning.value, settings.data
        assert saving is not None
        assert method is not None

        def make(ratio: float) -> Method:
            changed: Any = method
            return replace(changed, prune_ratio=ratio)

        whole = data.batch_size if data.drop_last else 1
        return planned_prune_ratio(make, saving, num_samples=self.samples, epochs=self.run.epochs, whole_batches=whole)

    def _shorter(self) -> Settings:
        ratio = self._planned()
        assert ratio is not None, "random is planned"
        random = self._settings(ratio)
        assert random.pruning.value is not None
        return replaced(random, shorter_run(random, random.pruning.value, samples=self.samples))

    def _on_a_subset(self) -> Outcome:
        """Score, then train on the best of the samples alone."""
        started = time.perf_counter()
        result = score(self._scoring())
        assert result is not None, "there is one rank"
        seconds = time.perf_counter() - started
        # Every epoch keeps as many, so that both ways to count progress are one.
        list_ = ["pruning.method=fixed_subset", f"pruning.skip_list={result.skip_list}", "pruning.progress=epochs"]
        return self._train(load_settings(self.config, list_), scoring_seconds=seconds)

    def _scoring(self) -> Scoring:
        given = {**self.run.given, "method": self.run.given["score"], "prune_ratio": self.run.saving}
        given["seed"] = SURROGATE_SEEDS + self.run.seed
        del given["score"]
        # A scoring run has every sample in every epoch.
        overrides = ["data.drop_last=false", *(f"{name}={_text(value)}" for name, value in given.items())]
        return load_scoring(self.config, [*overrides, f"folder={self.folder / 'scores'}"])

    # Training ----------------------------------------------------------------------------------------------------

    def _train(self, settings: Settings, *, prune_ratio: float = float("nan"), scoring_seconds: float = 0.0) -> Outcome:
        run = self.run
        settings = replaced(settings, {"folder": tempfile.mkdtemp(dir=self.folder)})  # a search trains several times
        check_data(settings, self.description, 1)
        check_method(settings)
        seed_generators(settings.seed)
        task = build_task(settings.model, self.description)
        curve: list[float] = []

        def note(epoch: int) -> None:
            del epoch
            if host.tested_at == host.batches:
                curve.extend([host.seconds, host.metrics["MulticlassAccuracy"]])

        host = Host(settings, task, build_loaders(settings, self.description, ranks=1), after_epoch=note)
        trained = host.fit()
        save_ratio = 1 - trained.forwarded / (whole_batches(self.samples, settings) * run.epochs)
        engine = trained.engine
        return Outcome(
            key=run.key,
            regime=run.regime,
            epochs=run.epochs,
            saving=float("nan") if run.saving is None else run.saving,
            arm=run.arm,
            seed=run.seed,
            prune_ratio=prune_ratio,
            save_ratio=save_ratio,
            solved=run.saving is None or abs(save_ratio - run.saving) <= TOLERANCE + 1e-4,
            accuracy=trained.metrics["MulticlassAccuracy"],
            worst_class=_worst_class(host, self.description),
            cross_entropy=trained.metrics["CrossEntropy"],
            forwarded=trained.forwarded,
            steps=host.batches,
            seconds=trained.seconds,
            boundary_seconds=0.0 if engine is None else sum(record.boundary_seconds for record in engine.records),
            scoring_seconds=scoring_seconds,
            returning=float("nan") if engine is None else _returning(engine),
            curve=curve,
        )


def _returning(engine: PruningEngine) -> float:
    pruned = [record for record in engine.records if record.keep_ratio < 1]
    late = pruned[len(pruned) // 2 :]
    return float(np.mean([record.returning / record.kept for record in late])) if late else float("nan")


@torch.no_grad()
def _worst_class(host: Host, description: Description) -> float:
    assert isinstance(host.task, Classification)
    hits, counts = (torch.zeros(len(description.classes)) for _ in range(2))
    host.network.eval()
    for batch in host.loaders.test:
        images, labels = host.loaders.test_transform(host.on_device(batch))
        with host.autocast():
            right = host.network(images).argmax(1) == labels
        hits += torch.bincount(labels, right.float(), len(counts)).cpu()
        counts += torch.bincount(labels, minlength=len(counts)).cpu()
    return float((hits / counts)[counts > 0].min())


def _text(value: Any) -> str:
    """A value as an override has it."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
