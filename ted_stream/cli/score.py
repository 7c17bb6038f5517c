"""``ted-stream score``."""

import shlex
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ted_stream.pipelines.training.score import ScoreResult
    from ted_stream.pipelines.training.settings import Settings

__all__ = ["score"]


def score(
    config: Annotated[Path, typer.Argument(help="YAML file; see configs/.", show_default=False)],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="method=NAME [KEY=VALUE]…",
            help="The method (`ted-stream methods` shows all, `reference` writes losses of models that have not seen "
            "the samples) and its settings by name; prune_ratio, and with it balance, strata, cutoff; "
            "train=false, to score with the model as it is; runs; keep_vectors; and settings that replace the file's.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Score the training split once, by a surrogate that is trained as a config says, and choose a fixed subset.

    Training is by the plain loop and on all samples, whatever trainer and pruning the config names. The scores go to
    scores.parquet in the run folder, with prune_ratio the subset to skip_list.parquet.

    For example: ted-stream score configs/quickstart.yaml method=el2n prune_ratio=0.5 max_duration=2ep
    """
    from ted_stream.pipelines.training.score_settings import load_scoring

    scoring = load_scoring(config, overrides or ())  # refused before the slow imports

    from ted_stream.cli.show import quiet

    quiet()
    from ted_stream.pipelines.training.score import score as run

    result = run(scoring)
    if result is not None:
        _show(result, _next(result, scoring.settings, config, overrides or []))


def _show(result: "ScoreResult", command: str) -> None:
    from rich.table import Table

    from ted_stream.cli.show import LABELS, console, shown_metric

    table = Table(title=f"{result.run_name}: {result.method}", show_header=False)
    of = "" if result.scored == result.samples else f"{result.scored:,} of "
    table.add_row("samples scored", f"{of}{result.samples:,}")
    if result.left_out:
        table.add_row("left out", f"{result.left_out:,}: {result.note}")
    if result.kept is not None:
        table.add_row("kept", f"{result.kept:,} ({result.kept / result.samples:.1%})")
    if result.seeds:
        surrogates = f"{result.epochs} epochs, seed{'s' * (len(result.seeds) > 1)} {', '.join(map(str, result.seeds))}"
        table.add_row("surrogate", surrogates)
        for name, value in result.metrics.items():
            table.add_row(f"its {LABELS.get(name, name)}", shown_metric(name, value))
    else:
        table.add_row("surrogate", "none trained")
    table.add_row("passes over the data", str(result.passes) if result.passes else "none, measured within training")
    table.add_row("seconds", f"{result.training_seconds:.1f} training, {result.scoring_seconds:.1f} scoring")
    if result.cost is not None:
        table.add_row("cost of scoring", f"{result.cost:.2f} epochs of training")
    console.print(table)

    def line(text: str) -> None:
        console.print(text, soft_wrap=True, highlight=False, markup=False)

    line(f"scores: {result.scores}")
    if result.skip_list is not None:
        line(f"skip-list: {result.skip_list}")
    line(f"next: {command}")


def _next(result: "ScoreResult", settings: "Settings", config: Path, overrides: list[str]) -> str:
    """The command that trains on the subset, in a folder of its own; without one, that which shows the scores."""
    if result.skip_list is None:
        return shlex.join(["ted-stream", "inspect", result.scores])
    sections = {option.name for option in fields(settings)}
    dropped = ("folder", "data.skip_list", "autoresume", "overwrite", "pruning.method")
    kept = [text for text in overrides if text.split("=")[0].split(".")[0] in sections]
    kept = [text for text in kept if text.split("=")[0] not in dropped]
    if result.weighted:  # a dataset reads a list's samples, and knows of no loss that their weights could multiply
        kept += [f"pruning.{name}=null" for name in settings.pruning.given]
        kept += ["pruning.method=fixed_subset", f"pruning.skip_list={result.skip_list}"]
    else:
        kept += ["pruning.method=none", f"data.skip_list={result.skip_list}"]
    return shlex.join(["ted-stream", "train", str(config), *kept, f"folder={result.folder.rstrip('/')}-subset"])
