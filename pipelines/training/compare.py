"""Several methods over several seeds with the same settings, in one table."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import mean, stdev
from typing import Any

from ted_stream.files import join, write_bytes

from ..corpora.prepared import read_description
from .paired import paired
from .results import Result
from .settings import METHOD_NAMES, ConfigError, Settings, epochs, replaced, settings_of
from .shorter import shorter_run, whole_batches
from .train import check_method, train

__all__ = ["BASELINES", "COMPARISON_FILE", "SHORTER", "Arm", "compare", "headline"]

COMPARISON_FILE = "compare.json"
SHORTER = "shorter"
BASELINES = (SHORTER, "random")  # what a method must beat


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One method's runs, one per seed."""

    method: str
    results: tuple[Result, ...]

    def spread(self, metric: str) -> tuple[float, float]:
        """Mean and sample standard deviation of a test metric over seeds; the latter is nan for one seed."""
        return _spread([result.metrics[metric] for result in self.results])

    def less(self, other: Arm, metric: str) -> tuple[float, float]:
        """The mean difference of a test metric to another arm over seeds, and half of its 95 % interval."""
        return paired(*([result.metrics[metric] for result in arm.results] for arm in (self, other)))

    def mean_of(self, name: str) -> float | None:
        """Mean of a field of `Result` over seeds, if it has a value."""
        values = [getattr(result, name) for result in self.results]
        return None if None in values else mean(values)


def headline(metrics: Sequence[str]) -> str:
    """The metric to show first: accuracy where there is one."""
    return next((name for name in metrics if "Accuracy" in name), metrics[0])


def compare(
    settings: Settings,
    methods: Sequence[str],
    seeds: Sequence[int],
    *,
    begins: Callable[[str, int], None] = lambda method, seed: None,
    finished: Callable[[Result], None] = lambda _: None,
) -> list[Arm]:
    """Train every method with every seed; only method and seed differ.

    ``shorter`` is full data for as many steps as random subsets under the settings' schedule take: what a method must
    beat to be worth more than a shorter run. Settings that one of the methods does not have are left to those that do.
    Seeds are the outer loop, so that a change of the machine's speed meets all methods alike. Each run has its folder
    ``<folder>/<method>-seed<seed>``; all results are written to ``<folder>/compare.json``.

    Args:
        settings: of every run.
        methods: values of ``pruning.method``, or ``shorter``.
        seeds: values of ``seed``.
        begins: told of the method and the seed of every run before it trains.
        finished: told of every result as it comes.

    Returns:
        One arm per method, in the order given.

    Raises:
        ConfigError: an unknown or repeated method, or no seed.
    """
    if not seeds:
        raise ConfigError("no seeds; a comparison needs at least one.")
    if not methods or len(set(methods)) != len(methods):
        names = ", ".join((*METHOD_NAMES, SHORTER))
        raise ConfigError(f"methods are {list(methods)}; name each of {names} at most once.")
    runs: dict[tuple[str, int], Settings] = {}
    for seed in seeds:
        for method in methods:
            name = f"{method}-seed{seed}"
            others = settings.pruning.given.keys() - {*settings_of(method)}
            runs[method, seed] = replaced(
                settings,
                {
                    **(_shorter(settings) if method == SHORTER else {"pruning.method": method}),
                    **{f"pruning.{other}": None for other in others},
                    "seed": seed,
                    "run_name": f"{settings.run_name}-{name}",
                    "folder": join(settings.folder, name),
                },
            )
    for run in runs.values():
        check_method(run)  # refused before the first one has trained
    results: dict[str, list[Result]] = {method: [] for method in methods}
    for (method, seed), run in runs.items():
        begins(method, seed)
        result = train(run)
        if method == SHORTER:
            result = _beside_longer(result, settings)
        results[method].append(result)
        finished(result)
    arms = [Arm(method=method, results=tuple(results[method])) for method in methods]
    text = json.dumps([asdict(arm) for arm in arms], indent=2) + "\n"
    write_bytes(join(settings.folder, COMPARISON_FILE), text.encode())
    return arms


def _shorter(settings: Settings) -> dict[str, Any]:
    """Full data for as many steps as random subsets take under the settings' schedule."""
    if settings.data.skip_list is not None:
        raise ConfigError(
            f"data.skip_list is {settings.data.skip_list}, and {SHORTER} is a run on all data; set it to null, or take "
            f"{SHORTER} out of the methods."
        )
    shared = {name: value for name, value in settings.pruning.given.items() if name in settings_of("random")}
    others = {f"pruning.{name}": None for name in settings.pruning.given.keys() - shared.keys()}
    method = replaced(settings, {"pruning.method": "random", **others}).pruning.value
    assert method is not None
    return shorter_run(settings, method, samples=read_description(settings.data.path).samples["train"])


def _beside_longer(result: Result, settings: Settings) -> Result:
    """The result of the shorter run, with what it saves of the full one."""
    save_ratio = 1 - result.forwarded / (whole_batches(result.samples, settings) * epochs(settings))
    all_tokens = read_description(settings.data.path).tokens("train")
    tokens = 1 - result.tokens / (all_tokens * epochs(settings)) if all_tokens and result.tokens else None
    return replace(
        result, method=SHORTER, save_ratio=save_ratio, planned_save_ratio=save_ratio, token_save_ratio=tokens
    )


def _spread(values: Sequence[float]) -> tuple[float, float]:
    return mean(values), stdev(values) if len(values) > 1 else float("nan")
