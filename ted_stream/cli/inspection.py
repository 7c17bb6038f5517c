"""``ted-stream inspect``."""

from typing import Annotated, Any

import typer

__all__ = ["inspect"]


def inspect(
    path: Annotated[str, typer.Argument(help="A file of scores (scores.parquet): a path or URI.", show_default=False)],
    number: Annotated[int, typer.Option(min=0, help="Samples with the highest and the lowest scores to show.")] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Show what a file of scores holds: where it comes from, how scores are spread, and the extreme samples."""
    from ted_stream.export.scores import ScoresError
    from ted_stream.export.summary import summary_of_scores

    try:
        summary = summary_of_scores(path, number=number)
    except ScoresError as error:
        raise ValueError(f"{error}. Files of scores can be inspected, as `ted-stream score` writes them.") from error
    if as_json:
        import json

        typer.echo(json.dumps(summary, indent=2))
        return
    _show(path, summary)


def _show(path: str, summary: dict[str, Any]) -> None:
    from rich.table import Table

    from ted_stream.cli.show import console

    provenance = dict(summary["provenance"])
    config = provenance.pop("config", None)
    method = provenance.get("method", "scores")
    table = Table(title=f"{path}: {method}", show_header=False)
    unknown = f", {summary['unknown']:,} without a score" if summary["unknown"] else ""
    table.add_row("samples", f"{summary['samples']:,}{unknown}")
    for name, text in provenance.items():
        table.add_row(name, text)
    table.add_row("dataset", summary["fingerprint"][:16])
    if summary["quantiles"]:
        table.add_row("mean", f"{summary['mean']:.4g}")
        for probability, value in summary["quantiles"].items():
            table.add_row(f"quantile {float(probability):.0%}", f"{value:.4g}")
    console.print(table)
    if summary["classes"]:
        table = Table(title="classes")
        for column in ("class", "samples", "mean score"):
            table.add_column(column, justify="right")
        for one in summary["classes"]:
            mean = "" if one["mean"] is None else f"{one['mean']:.4g}"
            table.add_row(str(one["label"]), f"{one['samples']:,}", mean)
        console.print(table)
    is_reference = method.startswith("Reference(")
    for which in ("highest", "lowest"):
        if summary[which]:
            likely = ": likely wrong labels" * (is_reference and which == "highest")
            console.print(_samples(f"{which} scores{likely}", summary[which]))
    if config is not None:
        console.print("config: shown by --json")


def _samples(title: str, samples: list[dict[str, Any]]) -> Any:
    from rich.table import Table

    table = Table(title=title)
    keyed = any(sample["key"] is not None for sample in samples)
    for column in ("sample", "shard", "position", *(["key"] * keyed), "class", "score"):
        table.add_column(column, justify="left" if column in ("shard", "key") else "right", overflow="fold")
    for sample in samples:
        key = [sample["key"] or ""] * keyed
        label = "" if sample["label"] is None else str(sample["label"])
        place = [str(sample["sample_id"]), sample["shard"], str(sample["position"])]
        table.add_row(*place, *key, label, f"{sample['score']:.4g}")
    return table
