"""Summaries and comparisons as tables."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from math import inf
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table

from ted_stream.cli.show import console
from ted_stream.showing import printable

__all__ = ["show_comparison", "show_summary"]

_LABELS = {"sample_id": "sample", "times_kept": "times kept", "label": "class"}
_LEFT = {"name", "stream", "file", "class", "shard", "key", "column", "encoding", "split", "format", "text"}
_MOST_LETTERS = 300  # of a sample's text; --json has all


def show_summary(found: Mapping[str, Any], number: int) -> None:
    """What :func:`~ted_stream.export.summary_of` gives; of shards and classes ``number`` at each end."""
    {
        "run": _show_run,
        "skip-list": _show_list,
        "manifest": _show_manifest,
        "scores": _show_scores,
        "running scores": _show_running,
        "dataset": _show_dataset,
    }[found["kind"]](found, number)


def _show_run(found: Mapping[str, Any], number: int) -> None:
    state = "finished" if found.get("finished") else "not finished"
    planned, real = found["planned_save_ratio"], found["save_ratio"]
    _facts(
        f"{found['folder']}: {found['settings']}",
        {
            "run": f"{found['run']}, {state}: {found['epochs_done']} of {found['max_epochs']} epochs",
            "samples": f"{found['samples']:,}",
            "save ratio": f"planned {'as it goes' if planned is None else f'{planned:.4f}'}, so far {real:.4f}",
            "dataset": found["dataset"][:16],
            "output layer": found.get("output_layer") or "",
            "seed": found["seed"],
            **_spread(found["scores"], "scores after epoch"),
            "warnings": "; ".join(f"epoch {at}: {', '.join(kinds)}" for at, kinds in found["warnings"].items()),
        },
    )
    _rows(
        "epochs",
        [
            {
                "epoch": row["epoch"],
                "planned": f"{row['planned']:.1%}",
                "kept": f"{row['kept']:,}",
                "real": f"{row['real']:.1%}",
                "returned": f"{row['returned']:,}",
                "newly pruned": "" if row["newly_pruned"] is None else f"{row['newly_pruned']:,}",
                "overlap": _share(row["overlap"]),
                "by chance": _share(row["expected_overlap"]),
                "forwarded": f"{row['forwarded']:,}" if row["forwarded"] else "",
            }
            for row in found["epochs"]
        ],
    )
    _show_shares(f"shards, of epoch {found['last_pruned']}", found["shards"], "shard", number)
    _show_shares(f"classes, of epoch {found['last_pruned']}", found["classes"], "label", number)
    for which in ("highest", "lowest"):
        _samples(f"{which} scores", found[which])
    _samples("most contested: switched between kept and pruned most often", found["contested"])
    likely = found.get("likely_wrong", [])
    if isinstance(likely, str):
        _note(f"The reference scores could not be read: {likely}")
    else:
        _samples("likely wrong labels: highest reference losses", likely)
    for note in found["notes"]:
        _note(note)


def _show_list(found: Mapping[str, Any], number: int) -> None:
    samples, kept = found["samples"], found["kept"]
    _facts(
        f"skip-list of epoch {found['epoch']}: {found['method']}",
        {
            "run": found["run"],
            "kept": f"{kept:,} of {samples:,} ({kept / samples:.1%}), asked for {found['keep_ratio']:.1%}",
            "dataset": found["dataset"][:16],
            "digest": found["digest"][:16],
            "format version": found["format_version"],
            **_spread(found["weights"], "weights"),
        },
    )
    _show_shares("shards", found["shards"], "shard", number)


def _show_manifest(found: Mapping[str, Any], number: int) -> None:
    facts = {
        "kept": f"{found['kept']:,} of {found['samples']:,}",
        "run": found["run"],
        "skip-list": (found["skip_list"] or "")[:16],
    }
    _facts(f"manifest: {found['method']}", {**facts, **_spread(found["scores"], "scores")})
    shards = sorted(found["shards"], key=lambda row: row["kept"])
    _rows(_some("shards, by what is kept", shards, number), [_plain(row, {"stream"}) for row in _ends(shards, number)])
    _extremes(found)


def _show_scores(found: Mapping[str, Any], number: int) -> None:
    provenance = dict(found["provenance"])
    config = provenance.pop("config", None)
    method = provenance.get("method", "scores")
    unknown = f", {found['unknown']:,} without a score" if found["unknown"] else ""
    _facts(
        f"scores: {method}",
        {
            "samples": f"{found['samples']:,}{unknown}",
            **provenance,
            "dataset": found["fingerprint"][:16],
            **_quantiles(found),
        },
    )
    classes = sorted(found["classes"], key=lambda row: -inf if row["mean"] is None else row["mean"])
    rows = [
        {"class": row["label"], "samples": f"{row['samples']:,}", "mean score": _number(row["mean"])}
        for row in _ends(classes, number)
    ]
    _rows(_some("classes, by their mean score", classes, number), rows)
    _extremes(found, is_reference=method.lower().startswith("reference"))
    if config is not None:
        console.print("config: shown by --json")


def _show_running(found: Mapping[str, Any], number: int) -> None:
    del number
    _facts(
        f"running scores after epoch {found['epoch']}",
        {"samples": f"{found['samples']:,}", "dataset": found["dataset"][:16], **_spread(found["scores"], "scores")},
    )
    _extremes(found)
    _note("Which samples these are, the run folder tells: inspect that.")


def _show_dataset(found: Mapping[str, Any], number: int) -> None:
    rows = [
        {
            "split": split["name"],
            "samples": f"{split['samples']:,}",
            "shards": f"{split['shards']:,}",
            "size": decimal(split["bytes"]),
            "format": split["format"] or "",
            "compression": split["compression"] or "none",
            "content known": "by hashes" if split["hashed"] else "no",
            "fingerprint": split["fingerprint"][:16],
        }
        for split in found["splits"]
    ]
    _rows(f"{found['path']}: {found.get('name') or 'dataset'}", rows)
    columns = found["splits"][0]["columns"]
    _rows("columns", [{"column": name, "encoding": encoding} for name, encoding in columns.items()])
    for split in found["splits"]:
        classes = sorted(split["classes"], key=lambda row: row["samples"])
        rows = [_plain(row) for row in _ends(classes, number)]
        _rows(_some(f"classes of {split['name'] or 'it'}, by their size", classes, number), rows)
        for note in split["notes"]:
            _note(note)


def show_comparison(found: Mapping[str, Any], number: int) -> None:
    """What :func:`~ted_stream.export.comparison_of` gives."""
    del number
    facts: dict[str, Any] = {
        "first": found["paths"][0],
        "second": found["paths"][1],
        "samples": f"{found['samples']:,}",
    }
    if kept := found.get("kept"):
        facts |= {
            "kept": f"{kept['first']:,} and {kept['second']:,}",
            "by both": f"{kept['both']:,}",
            "by the first alone": f"{kept['only_first']:,}",
            "by the second alone": f"{kept['only_second']:,}",
            "by none": f"{kept['neither']:,}",
            "overlap, both / any": f"{kept['jaccard']:.1%} (by chance {kept['expected_jaccard']:.1%})",
        }
    if scores := found.get("scores"):
        facts |= {
            "scores known on both sides": f"{scores['known']:,}",
            "rank correlation": _number(scores["rank_correlation"]),
            "correlation": _number(scores["correlation"]),
            "same among the highest tenth": _share(scores["top_overlap"]),
        }
    _facts(f"{found['kinds'][0]} and {found['kinds'][1]}", facts)
    for one in found.get("scores_of_kept", []):
        rows = [
            {"samples": name, "mean": _number(one[name]["mean"])}
            | {f"{float(p):.0%}": _number(one[name]["quantiles"][p]) for p in ("0.0", "0.05", "0.5", "0.95", "1.0")}
            for name in ("kept", "pruned")
            if one[name]["quantiles"]
        ]
        _rows(f"scores of {one['scores_of']}, of what {one['kept_by']} keeps", rows)
    rows = [
        {"epoch": row["epoch"], "kept by first": f"{row['kept'][0]:,}", "kept by second": f"{row['kept'][1]:,}"}
        | {"both / any": _share(row["jaccard"])}
        for row in found.get("epochs", [])
    ]
    _rows("epochs", rows)


# Parts ------------------------------------------------------------------------------------------------------------


def _facts(title: str, facts: Mapping[str, Any]) -> None:
    table = Table(show_header=False)
    for name, value in facts.items():
        if value != "":
            table.add_row(escape(name), escape(printable(str(value))))
    _title(title)
    console.print(table)


def _rows(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """A table of rows of the same names; none of no rows."""
    if not rows:
        return
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True)
    for name in rows[0]:
        table.add_column(escape(name), justify="left" if name in _LEFT else "right", overflow="fold")
    for row in rows:
        table.add_row(*("" if value is None else escape(printable(_word(value))) for value in row.values()))
    _title(title)
    console.print(table)
    console.print()


def _title(text: str) -> None:
    """On a line of its own, since a table's own title is folded to the table's width."""
    console.print(printable(text), soft_wrap=True, highlight=False, markup=False, style="italic")


def _note(text: str) -> None:
    console.print(f"note: {printable(text)}", soft_wrap=True, highlight=False, markup=False)


def _show_shares(title: str, rows: Sequence[Mapping[str, Any]], name: str, number: int) -> None:
    """Those of which the least and the most is kept."""
    rows = sorted(rows, key=lambda row: row["share"])
    shown = [
        {
            _LABELS.get(name, name): row[name] if row.get("name") is None else f"{row[name]}: {row['name']}",
            "samples": f"{row['samples']:,}",
            "kept": f"{row['kept']:,}",
            "share": f"{row['share']:.1%}",
        }
        | ({"mean of all pruned epochs": f"{row['mean_share']:.1%}"} if "mean_share" in row else {})
        | ({"least": f"{row['least_share']:.1%} in epoch {row['least_epoch']}"} if "least_share" in row else {})
        | ({"": "nearly gone" * bool(row["scarce"])} if any(row.get("scarce") for row in rows) else {})
        for row in _ends(rows, number)
    ]
    _rows(_some(f"{title}, by the share that is kept", rows, number), shown)


def _extremes(found: Mapping[str, Any], *, is_reference: bool = False) -> None:
    for which in ("highest", "lowest"):
        _samples(f"{which} scores{': likely wrong labels' * (is_reference and which == 'highest')}", found[which])


def _samples(title: str, samples: Sequence[Mapping[str, Any]]) -> None:
    """What is known of samples; a column that is empty for all of them is left out."""
    names = [name for name in (samples[0] if samples else {}) if any(row[name] is not None for row in samples)]

    # What the owner calls a sample says more than its place; the name of its class more than the number.
    def all_have(*ways: str) -> bool:
        return all(any(row.get(name) is not None for name in ways) for row in samples)

    without = {"stream", "shard", "position"} if all_have("file", "key") else {"stream"}
    without |= {"label"} if all_have("class") else set()
    names = [name for name in names if name not in without]
    shown = {"score": _number, "text": lambda text: text[:_MOST_LETTERS] + "…" * (len(text) > _MOST_LETTERS)}
    rows = [
        {_LABELS.get(name, name): shown.get(name, lambda as_it_is: as_it_is)(row[name]) for name in names}
        for row in samples
    ]
    _rows(title, [_plain(row) for row in rows])


def _plain(row: Mapping[str, Any], without: Collection[str] = ()) -> dict[str, Any]:
    return {
        name: f"{value:,}" if name in ("samples", "kept") and not isinstance(value, bool) else value
        for name, value in row.items()
        if name not in without and not (name == "name" and value is None)
    }


def _ends(rows: Sequence[Any], number: int) -> Sequence[Any]:
    return rows if len(rows) <= 2 * number else [*rows[:number], *rows[len(rows) - number :]]


def _some(title: str, rows: Sequence[Any], number: int) -> str:
    return title if len(rows) <= 2 * number else f"{title}: {number} at each end of {len(rows):,}"


def _spread(found: Mapping[str, Any] | None, name: str) -> dict[str, Any]:
    if not found or not found["quantiles"]:
        return {}
    epoch = f" {found['epoch']}" if "epoch" in found else ""
    unknown = f", {found['unknown']:,} samples without" if found.get("unknown") else ""
    values = found["quantiles"]
    told = f"mean {_number(found['mean'])}, median {_number(values['0.5'])}, {_number(values['0.0'])} to "
    return {f"{name}{epoch}": f"{told}{_number(values['1.0'])}{unknown}"}


def _quantiles(found: Mapping[str, Any]) -> dict[str, str]:
    pairs: Iterable[tuple[str, float]] = found["quantiles"].items()
    mean = {"mean": _number(found["mean"])} if found["quantiles"] else {}
    return mean | {f"quantile {float(probability):.0%}": _number(value) for probability, value in pairs}


def _word(value: Any) -> str:
    return ("no", "yes")[value] if isinstance(value, bool) else str(value)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"
