"""``ted-stream inspect``."""

from typing import Annotated, Any

import typer

__all__ = ["inspect"]


def inspect(
    path: Annotated[
        str,
        typer.Argument(
            help="A skip-list, run folder, manifest, file of scores or dataset: a path or URI.", show_default=False
        ),
    ],
    other: Annotated[
        str | None, typer.Argument(help="Another, to be compared with PATH.", show_default=False, metavar="[OTHER]")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="Dataset that a run trained on, for classes and texts.", show_default="that of its config"),
    ] = None,
    number: Annotated[int, typer.Option(min=0, help="Samples, shards and classes of each sort to show.")] = 10,
    text: Annotated[bool, typer.Option("--text", help="With each sample's origin and text, of its dataset.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with all of them, instead of tables.")] = False,
) -> None:
    """Show what a skip-list, run, manifest, file of scores or dataset holds; or compare two of them.

    Of a run, finished or not, epoch by epoch: kept, returned and newly pruned samples, and the overlap with the epoch
    before. By shard and class the share that is kept. The highest, lowest and most contested samples.

    For example: ted-stream inspect runs/a runs/b --json
    """
    from ted_stream.cli.show_summary import show_comparison, show_summary
    from ted_stream.export import comparison_of, summary_of

    if other is not None:
        if data is not None:
            raise ValueError(f"--data is {data!r}, but two things are compared without their dataset; leave it out.")
        if text:
            raise ValueError("--text is of samples, of which a comparison names none; leave it out.")
        found, show = comparison_of(path, other), show_comparison
    else:
        config = _config_of(path)
        found, show = summary_of(path, number=number, data=data or config.get("data")), show_summary
        if config.get("reference"):
            found["likely_wrong"] = _likely_wrong(config["reference"], number)
        if text:
            from ted_stream.extras import optional_imports

            with optional_imports():
                from ted_stream.pipelines.report.texts import add_texts
            add_texts(found, path, data=data or config.get("data"))
    if as_json:
        import json

        typer.echo(json.dumps(found, indent=2))
    else:
        show(found, number)


def _config_of(path: str) -> dict[str, Any]:
    """The dataset that the config of a run folder names, and the file of its reference scores."""
    from ted_stream.extras import MissingExtraError, optional_imports

    try:
        with optional_imports():
            from ted_stream.pipelines.training.run_config import read_config
    except MissingExtraError:  # who trains by a loop of their own has neither the recipes nor a config
        return {}
    return read_config(path)


def _likely_wrong(reference: str, number: int) -> list[dict[str, Any]] | str:
    """The samples of the highest reference losses; or why there are none."""
    from ted_stream.export import summary_of

    try:
        return summary_of(reference, number=number)["highest"]
    except (OSError, ValueError) as error:
        return str(error)
