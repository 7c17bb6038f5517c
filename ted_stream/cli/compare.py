"""``ted-stream compare``."""

from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ted_stream.pipelines.training.train import Result

__all__ = ["compare"]


def compare(
    config: Annotated[Path, typer.Argument(help="YAML file; see configs/.", show_default=False)],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]…", help="Settings that replace the file's.", show_default=False),
    ] = None,
    methods: Annotated[
        str,
        typer.Option(help="By commas; none is full data, shorter full data for as many steps as random takes."),
    ] = "none,shorter,random,importance_sampling,ted",
    seeds: Annotated[int, typer.Option(min=1, help="Runs per method; seeds count up from the config's.")] = 3,
) -> None:
    """Train with several pruning methods over several seeds, all else equal, and show one table.

    For example: ted-stream compare configs/quickstart.yaml --methods none,random,ted --seeds 5
    """
    from ted_stream.pipelines.training.settings import load_settings

    settings = load_settings(config, overrides or ())

    from ted_stream.cli.show import LABELS, console, let_one_speak, quiet, show_arms, show_places

    quiet()
    let_one_speak()
    from ted_stream.pipelines.training.compare import compare as run
    from ted_stream.pipelines.training.compare import headline

    names = [method.strip() for method in methods.split(",")]
    begun = count(1)

    def begins(method: str, seed: int) -> None:
        console.print(f"Run {next(begun)} of {len(names) * seeds}: {method}, seed {seed}", highlight=False)

    def finished(result: "Result") -> None:
        metric = headline(list(result.metrics))
        console.print(
            f"{result.method}, seed {result.seed}: {LABELS.get(metric, metric)} {result.metrics[metric]:.4f}, "
            f"{result.forwarded:,} samples, {result.seconds:.1f} s",
            highlight=False,
        )

    arms = run(settings, names, range(settings.seed, settings.seed + seeds), begins=begins, finished=finished)
    show_arms(f"{settings.run_name}: {settings.max_duration}, {seeds} seeds", arms)
    if {"shorter", "random"} <= {arm.method for arm in arms}:
        console.print(
            "random is a fresh random subset in every epoch, shorter full data for as many steps: a method that does "
            "not beat both is not worth its scores here."
        )
    for arm in arms:
        if arm.method == "ted":
            show_places(arm.results[0])
