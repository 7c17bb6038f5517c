"""``ted-stream bench``: time and memory on this machine."""

import json
from dataclasses import asdict
from enum import Enum
from importlib.metadata import version
from pathlib import Path
from statistics import mean, median
from typing import Annotated, Any

import typer

from ted_stream.cli.bench_methods import methods

__all__ = ["app"]

SIZES = [1_280_000, 100_000_000]
IMAGENET = 1_281_167
KEEP_RATIOS = [1.0, 0.5, 0.3, 0.1]


class Model(str, Enum):
    """What a step trains."""

    convnet = "convnet"
    resnet18 = "resnet18"
    gpt = "gpt"
    llama_lora = "llama_lora"


class Device(str, Enum):
    """Where."""

    cpu = "cpu"
    gpu = "gpu"


class Host(str, Enum):
    """What trains."""

    loop = "loop"
    huggingface = "huggingface"


class Kind(str, Enum):
    """What local samples are."""

    raw = "raw"
    jpeg = "jpeg"


class Copy(str, Enum):
    """What a copied dataset is."""

    mds = "mds"
    webdataset = "webdataset"
    hf = "hf"


MODELS = [Model.resnet18, Model.gpt]
HOSTS, KINDS, COPIED, WORKERS = list(Host), list(Kind), [Copy.mds], [1, 2]

Json = Annotated[Path | None, typer.Option("--json", help="File for every measurement.", show_default="none")]

app = typer.Typer(help="Measure time and memory on this machine.", no_args_is_help=True)


app.command("methods")(methods)


@app.callback()
def bench() -> None:
    """Measure time and memory on this machine."""


@app.command()
def selection(
    samples: Annotated[list[int], typer.Option(min=1, help="Size of the dataset; may be given several times.")] = SIZES,
    ranks: Annotated[int, typer.Option(min=1, help="Processes that own a part of the scores each.")] = 2,
    repeats: Annotated[int, typer.Option(min=1, help="Timed runs of each.")] = 11,
) -> None:
    """The exact distributed selection of 30 % of the samples, in turns with numpy.argpartition in one process.

    For example: ted-stream bench selection --samples 1280000 --repeats 5
    """
    import numpy as np
    import torch
    from rich.table import Table

    from ted_stream.cli.show import console
    from ted_stream.pipelines.benches.selection import bench_selection

    table = Table(
        title=f"{ranks} ranks over gloo; numpy {np.__version__}, torch {torch.__version__}",
        caption="Seconds: median (least – most). Bytes per sample: peak beside the scores, and with their 4.",
    )
    table.add_column("samples", justify="right", no_wrap=True)
    for column in ("selection, s", "argpartition, s", "ratio", "bytes", "argpartition, bytes"):
        table.add_column(column, justify="right")
    for number in samples:
        row = bench_selection(number, ranks=ranks, repeats=repeats)
        table.add_row(
            f"{number:,}",
            _seconds(row.selection),
            _seconds(row.argpartition),
            f"{row.ratio:.2f}" if row.argpartition else "",
            _bytes(row.selection_bytes),
            _bytes(row.argpartition_bytes),
        )
    console.print(table)


@app.command()
def step(
    model: Annotated[list[Model], typer.Option(help="May be given several times.")] = MODELS,
    rounds: Annotated[int, typer.Option(min=1, help="Pairs of blocks of steps, without and with.")] = 15,
    steps: Annotated[int | None, typer.Option(min=1, help="Of a block.", show_default="what fills 0.06 s")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Samples of a step.", show_default="by model")] = None,
    device: Annotated[Device | None, typer.Option(show_default="gpu if there is one")] = None,
) -> None:
    """A training step with each measure and with weights, in turns with the plain one; no loader and no trainer.

    For example: ted-stream bench step --model gpt --device cpu --rounds 10
    """
    import torch

    from ted_stream.cli.show import console
    from ted_stream.pipelines.benches.step import bench_step, describe, header

    if device is None:
        device = Device.gpu if torch.cuda.is_available() else Device.cpu
    console.print(header(device.value), highlight=False, soft_wrap=True)
    for each in model:
        rows = bench_step(each.value, device=device.value, rounds=rounds, steps=steps, batch_size=batch_size)
        for row in rows:
            console.print(describe(row), highlight=False, soft_wrap=True)


@app.command()
def hosts(
    host: Annotated[list[Host], typer.Option(help="May be given several times.")] = HOSTS,
    model: Annotated[list[Model], typer.Option(help="May be given several times.")] = MODELS,
    rounds: Annotated[int, typer.Option(min=1, help="Runs without and with pruning, in turns.")] = 5,
    steps: Annotated[int, typer.Option(min=6, help="Of a full epoch.")] = 24,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Samples of a step.", show_default="by model")] = None,
) -> None:
    """A run of two epochs in a plain loop and in Hugging Face's Trainer, without pruning and with TED, in turns.

    For example: ted-stream bench hosts --host loop --rounds 10 --steps 14
    """
    from ted_stream.cli.show import console, quiet
    from ted_stream.pipelines.benches.hosts import bench_host, describe

    quiet()
    console.print("Step: seconds per second of the plain run's, median (least – most) of the rounds.", soft_wrap=True)
    for each in host:
        for one in model:
            row = bench_host(each.value, one.value, rounds=rounds, steps=steps, batch_size=batch_size)
            console.print(describe(row), highlight=False, soft_wrap=True)


@app.command()
def noise(
    data: Annotated[Path, typer.Argument(help="Folder of prepared images.")] = Path("data/cifar10"),
    seeds: Annotated[int, typer.Option(min=1, help="Runs of everything.")] = 5,
    samples: Annotated[int, typer.Option(min=100, help="Of the training split, drawn anew for every seed.")] = 10_000,
    size: Annotated[int, typer.Option(min=4, help="Side of the images, scaled down.")] = 16,
    epochs: Annotated[int, typer.Option(min=2, help="Of a run.")] = 30,
    share: Annotated[float, typer.Option(min=0, max=1, help="Of the labels that are replaced.")] = 0.3,
) -> None:
    """Wrong labels: found by cross-fitted losses; and learnability beside random, as many steps, and highest losses.

    For example: ted-stream bench noise data/cifar10 --seeds 3
    """
    from rich.table import Table

    from ted_stream.cli.show import console, quiet
    from ted_stream.pipelines.benches.noise import BASELINES, Found, Trial, run_trial
    from ted_stream.pipelines.training.paired import paired

    quiet()
    references: dict[str, list[Found]] = {}
    runs: dict[str, list[dict[str, float]]] = {}
    for seed in range(seeds):
        trial = Trial(path=str(data), samples=samples, size=size, epochs=epochs, noise=share, seed=seed)
        for name, result in run_trial(trial):
            if isinstance(result, Found):
                references.setdefault(name, []).append(result)
            else:
                runs.setdefault(name, []).append(result)
            console.print(f"seed {seed}, {name}: {result}", highlight=False, soft_wrap=True)
    table = Table(title="Wrong labels among as many samples of the highest loss as there are wrong labels, %")
    for column in ("", "wrong (precision, recall)", "area under the curve", "test accuracy of the references"):
        table.add_column(column, justify="right")
    for name, found in references.items():
        columns = ([getattr(one, field) for one in found] for field in ("share", "auc", "accuracy"))
        table.add_row(name, *(f"{100 * mean(column):.1f}" for column in columns))
    console.print(table)
    table = Table(
        title=f"Test accuracy, % ({seeds} seeds)",
        caption="Differences are paired over seeds, with the half of their 95 % t interval.",
    )
    for column in ("", "accuracy", *(f"less {baseline}" for baseline in BASELINES), "save ratio", "wrong labels kept"):
        table.add_column(column, justify="right")
    accuracies = {name: [100 * run["accuracy"] for run in found] for name, found in runs.items()}
    for name, found in runs.items():
        differences = [paired(accuracies[name], accuracies[baseline]) for baseline in BASELINES]
        table.add_row(
            name,
            f"{mean(accuracies[name]):.1f}",
            *(f"{difference:+.2f} ± {half:.2f}" for difference, half in differences),
            *(
                f"{mean(run[field] for run in found):.3f}" if field in found[0] else ""
                for field in ("save_ratio", "wrong")
            ),
        )
    console.print(table)


@app.command()
def scoring(
    method: Annotated[str, typer.Option(help="Of craig, cd, glister, dp.")] = "craig",
    samples: Annotated[int, typer.Option(min=1, help="Size of the dataset.")] = IMAGENET,
    classes: Annotated[int, typer.Option(min=2, help="Of the predictions.")] = 1000,
    features: Annotated[int, typer.Option(min=1, help="Of a sample.")] = 64,
    keep_ratio: Annotated[float, typer.Option(min=0, max=1, help="Of the samples to keep.")] = 0.1,
    folder: Annotated[Path | None, typer.Option(help="For what a pass would write.", show_default="temporary")] = None,
) -> None:
    """Time and memory of choosing a set from what a pass would write of a large dataset; predictions are made up.

    For example: ted-stream bench scoring --method dp --samples 50000 --classes 10
    """
    import tempfile

    from ted_stream.cli.show import console
    from ted_stream.methods.static import STATIC_METHODS, StaticMethod
    from ted_stream.pipelines.benches.scoring import bench_scoring

    names = ("craig", "cd", "glister", "dp")
    if method not in names:
        raise typer.BadParameter(f"{method!r} is none of {', '.join(names)}, which choose sets.")
    chosen = STATIC_METHODS[method]()
    assert isinstance(chosen, StaticMethod)
    keep = max(1, round(keep_ratio * samples))
    with tempfile.TemporaryDirectory(dir=folder) as out:
        row = bench_scoring(chosen, samples=samples, classes=classes, features=features, keep=keep, folder=Path(out))
    console.print(
        f"{chosen}: {samples:,} samples, {classes:,} classes, {features:,} features, {keep:,} kept: "
        f"{row.written / 1e9:.2f} GB written in {row.writing:.1f} s; chosen in {row.choosing:.1f} s with "
        f"{row.peak / 1e9:.3f} GB of memory",
        highlight=False,
        soft_wrap=True,
    )


@app.command()
def boundary(
    samples: Annotated[int, typer.Option(min=1, help="Size of the dataset.")] = IMAGENET,
    shards: Annotated[int, typer.Option(min=1, help="That the samples are spread over.")] = 1300,
    ranks: Annotated[int, typer.Option(min=1, help="Processes that train together.")] = 2,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples of a step on each rank.")] = 1024,
) -> None:
    """What pruning does between two epochs of a real run with a tiny model, on samples of a few bytes.

    For example: ted-stream bench boundary --samples 100000 --shards 100
    """
    import torch
    from rich.table import Table

    from ted_stream.cli.show import console, quiet
    from ted_stream.pipelines.benches.boundary import PARTS, SHARE, bench_boundary

    quiet()
    boundaries = bench_boundary(samples, shards=shards, ranks=ranks, batch_size=batch_size)
    table = Table(
        title=f"{samples:,} samples in {shards:,} shards, {ranks} ranks over gloo; torch {torch.__version__}",
        caption="Seconds on rank 0, waiting for the others included.",
    )
    table.add_column("part", no_wrap=True)
    for each in boundaries:
        table.add_column(f"before epoch {each.epoch}, {each.kept:,} kept", justify="right")
    for part, what in PARTS.items():
        table.add_row(f"{part}: {what}", *(f"{each.parts[part]:.3f}" for each in boundaries))
    table.add_section()
    table.add_row("all", *(f"{each.seconds:.3f}" for each in boundaries))
    table.add_row("of it recorded as boundary_seconds", *(f"{each.recorded:.3f}" for each in boundaries))
    table.add_row(f"epoch of which it is {SHARE:.0%}", *(f"{each.seconds / SHARE:.0f}" for each in boundaries))
    console.print(table)


@app.command()
def streaming(
    size: Annotated[float, typer.Option(min=0, help="GiB of the dataset.")] = 2.0,
    keep_ratio: Annotated[list[float], typer.Option(min=0, max=1, help="May be given several times.")] = KEEP_RATIOS,
    workers: Annotated[int, typer.Option(min=0, help="Of the loader.")] = 2,
    bandwidth: Annotated[float, typer.Option(min=0.001, help="Of the link, in MB/s.")] = 50.0,
    latency: Annotated[float, typer.Option(min=0, help="Of the link, in ms to a response's first byte.")] = 20.0,
    repeats: Annotated[int, typer.Option(min=1, help="Epochs of each.")] = 3,
    json_file: Json = None,
) -> None:
    """An epoch from object storage over a slow link, of all samples by stock streaming and of kept ones, in turns.

    Samples are random bytes, 32 to 200 KB each, in shards of 64 MiB; a fixed skip-list keeps some by chance. Every
    epoch starts with an empty cache, and every sample is compared with what was written.

    For example: ted-stream bench streaming --size 0.5 --keep-ratio 1 --keep-ratio 0.3
    """
    from rich.table import Table

    from ted_stream.cli.show import console, quiet
    from ted_stream.pipelines.benches.object_server import Link
    from ted_stream.pipelines.benches.streaming import bench_streaming

    quiet()
    stock, *pruned = rows = bench_streaming(
        int(size * 2**30),
        keep_ratios=keep_ratio,
        link=Link(bytes_per_second=bandwidth * 1e6, latency=latency / 1000),
        workers=workers,
        repeats=repeats,
    )
    title = f"{size:g} GiB over {bandwidth:g} MB/s with {latency:g} ms, {workers} workers; {_versions()}"
    table = Table(title=title, caption="Seconds: median (least – most). Sent: of the repeat with the most.")
    table.add_column("epoch", no_wrap=True)
    for column in ("samples", "kept, MB", "sent, MB", "sent / kept", "requests", "seconds", "per stock's"):
        table.add_column(column, justify="right")
    for row in (stock, *pruned):
        sent = max(epoch.sent for epoch in row.epochs)
        table.add_row(
            "stock" if row.keep_ratio is None else f"keep {row.keep_ratio:g}",
            f"{row.samples:,}",
            f"{row.kept / 1e6:.1f}",
            f"{sent / 1e6:.1f}",
            f"{sent / row.kept:.3f}",
            f"{median(epoch.requests for epoch in row.epochs):.0f}",
            _seconds([epoch.seconds for epoch in row.epochs]),
            f"{row.seconds_per(stock):.3f}",
        )
    console.print(table)
    _write_json(json_file, title, rows)


@app.command()
def local(
    kind: Annotated[list[Kind], typer.Option(help="May be given several times.")] = KINDS,
    raw_samples: Annotated[int, typer.Option(min=1, help="Arrays of 3,072 bytes, like CIFAR-10's.")] = 50_000,
    jpeg_samples: Annotated[int, typer.Option(min=1, help="Images of about 100 KB.")] = 2_000,
    repeats: Annotated[int, typer.Option(min=1, help="Measurements of each.")] = 5,
    json_file: Json = None,
) -> None:
    """An epoch from a local folder, shuffled, by stock streaming and by ours, in turns; fresh process, warm cache.

    For example: ted-stream bench local --kind jpeg --jpeg-samples 500
    """
    from rich.table import Table

    from ted_stream.cli.show import console, quiet
    from ted_stream.pipelines.benches.local import bench_local

    quiet()
    table = Table(title=_versions(), caption="Samples per second: median (least – most).")
    table.add_column("samples", no_wrap=True)
    for column in ("bytes each", "read by", "stock", "ours", "ratio"):
        table.add_column(column, justify="right")
    rows = []
    for each in kind:
        samples = raw_samples if each is Kind.raw else jpeg_samples
        for row in bench_local(each.value, samples, repeats=repeats):
            rows.append(row)
            table.add_row(
                f"{samples:,} {row.kind}",
                f"{row.sample_bytes:,}",
                "the dataset alone" if row.workers is None else f"a loader with {row.workers} worker",
                _rate(row.stock),
                _rate(row.ours),
                f"{row.ratio:.2f}",
            )
    console.print(table)
    _write_json(json_file, _versions(), rows)


@app.command()
def seeding(
    raw_samples: Annotated[int, typer.Option(min=21, help="Arrays of 3,072 bytes, like CIFAR-10's.")] = 2_000,
    jpeg_samples: Annotated[int, typer.Option(min=21, help="Images of about 100 KB.")] = 200,
    rounds: Annotated[int, typer.Option(min=1, help="Epochs of each.")] = 7,
    json_file: Json = None,
) -> None:
    """An epoch with random states for every sample (seed_samples=True) beside one without, in turns.

    Augmented: RandomResizedCrop, RandomHorizontalFlip and ColorJitter.

    For example: ted-stream bench seeding --rounds 3
    """
    from rich.table import Table

    from ted_stream.cli.show import console, quiet
    from ted_stream.pipelines.benches.seeding import AUGMENTED, bench_seeding

    quiet()
    table = Table(title=_versions(), caption="Processor time of a sample in µs: median (least – most).")
    table.add_column("samples", no_wrap=True)
    for column in ("workers", "without", "with", "ratio"):
        table.add_column(column, justify="right")
    rows = []
    for kind, (name, _) in AUGMENTED.items():
        for row in bench_seeding(kind, raw_samples if name == "raw" else jpeg_samples, rounds=rounds):
            rows.append(row)
            table.add_row(kind, str(row.workers), _seconds(row.plain), _seconds(row.seeded), f"{row.ratio:.3f}")
    console.print(table)
    _write_json(json_file, _versions(), rows)


@app.command()
def planning(
    samples: Annotated[int, typer.Option(min=1, help="Of the dataset whose planning is timed.")] = IMAGENET,
    shards: Annotated[int, typer.Option(min=1, help="That these samples are spread over.")] = 1300,
    stock_samples: Annotated[
        int, typer.Option(min=1, help="Of stock's dataset where memory is measured.")
    ] = 30_000_000,
    pruned_samples: Annotated[int, typer.Option(min=1, help="Of ours.")] = 100_000_000,
    repeats: Annotated[int, typer.Option(min=1, help="Timed epochs of each.")] = 11,
    json_file: Json = None,
) -> None:
    """Planning an epoch: time beside stock streaming, and peak memory, each with 30 % kept by ours and all by stock.

    Datasets have an index and no data; where memory is measured, shards hold 50,000 samples.

    For example: ted-stream bench planning --samples 1281167 --shards 1300
    """
    from rich.table import Table

    from ted_stream.cli.show import console, quiet
    from ted_stream.pipelines.benches.planning import KEEP_RATIO, bench_planning_memory, bench_planning_time

    quiet()
    times = bench_planning_time(samples, shards=shards, repeats=repeats)
    stock = bench_planning_memory(stock_samples, pruned=False)
    ours = bench_planning_memory(pruned_samples, pruned=True)
    table = Table(
        title=f"shuffled by streaming's default, one process; {_versions()}",
        caption="Seconds: median (least – most). MB: peak above the process with its imports.",
    )
    table.add_column("", no_wrap=True)
    for column in ("stock", f"ours, keep {KEEP_RATIO}", "ratio"):
        table.add_column(column, justify="right")
    size = f"{samples:,}"
    table.add_row("samples", size, size, "")
    table.add_row("seconds to plan", _seconds(times.stock), _seconds(times.ours), f"{times.ratio:.2f}")
    table.add_section()
    table.add_row("samples", f"{stock_samples:,}", f"{pruned_samples:,}", "")
    table.add_row("MB to make the dataset", f"{stock.made / 1e6:,.0f}", f"{ours.made / 1e6:,.0f}", "")
    planned = f"{stock.planned / 1e6:,.0f}", f"{ours.planned / 1e6:,.0f}", f"{ours.planned / stock.planned:.2f}"
    table.add_row("MB to make it and plan", *planned)
    console.print(table)
    _write_json(json_file, _versions(), [times, stock, ours])


@app.command()
def materialising(
    samples: Annotated[int, typer.Option(min=10, help="Of the dataset, 100 to 200 bytes each.")] = 1_280_000,
    keep_ratio: Annotated[float, typer.Option(min=0.01, max=0.99, help="Share that a random list keeps.")] = 0.5,
    to: Annotated[list[Copy], typer.Option(help="May be given several times.")] = COPIED,
    workers: Annotated[list[int], typer.Option(min=1, help="Processes; may be given several times.")] = WORKERS,
    repeats: Annotated[int, typer.Option(min=1, help="Measurements of each.")] = 3,
    json_file: Json = None,
) -> None:
    """Copying the kept samples into a dataset of their own, in turns with a plain copy of the files that it writes.

    For example: ted-stream bench materialising --samples 100000 --repeats 1
    """
    from rich.table import Table

    from ted_stream.cli.show import console, quiet
    from ted_stream.pipelines.benches.materialising import bench_materialising

    quiet()
    table = Table(
        title=f"{samples:,} samples, {keep_ratio:g} kept; {_versions()}",
        caption="Seconds: median (least – most). Memory: of the calling process, above its imports.",
    )
    table.add_column("to", no_wrap=True)
    for column in ("workers", "files", "MB", "seconds", "plain copy, s", "ratio", "kept samples/s", "memory, MB"):
        table.add_column(column, justify="right")
    rows = []
    for each in to:
        of = bench_materialising(samples, keep_ratio=keep_ratio, to=each.value, workers=workers, repeats=repeats)
        rows += of
        for row in of:
            table.add_row(
                row.to,
                str(row.workers),
                f"{row.shards:,}",
                f"{row.written / 1e6:.1f}",
                _seconds(row.seconds),
                _seconds(row.plain),
                f"{row.ratio:.2f}",
                _rate([row.kept / seconds for seconds in row.seconds]),
                f"{row.memory / 1e6:.0f}",
            )
    console.print(table)
    _write_json(json_file, _versions(), rows)


def _versions() -> str:
    return ", ".join(f"{name} {version(name)}" for name in ("mosaicml-streaming", "torch", "numpy"))


def _write_json(file: Path | None, title: str, rows: list[Any]) -> None:
    if file is not None:
        file.write_text(json.dumps({"title": title, "rows": [asdict(row) for row in rows]}, indent=2) + "\n")


def _seconds(values: list[float]) -> str:
    if not values:
        return "does not fit"
    return f"{median(values):.3g} ({min(values):.3g} – {max(values):.3g})"


def _rate(values: list[float]) -> str:
    return f"{median(values):,.0f} ({min(values):,.0f} – {max(values):,.0f})"


def _bytes(value: float) -> str:
    if value != value:  # nan: the kernel does not tell
        return "unknown"
    return f"{value:.2f} + 4 = {value + 4:.2f}"
