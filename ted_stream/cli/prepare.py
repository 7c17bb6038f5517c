"""``ted-stream prepare``: corpora to shards."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.filesize import decimal

if TYPE_CHECKING:
    from ted_stream.pipelines.corpora.prepared import Description

__all__ = ["app"]

app = typer.Typer(help="Turn a corpus into MDS shards that training reads.", no_args_is_help=True)

Out = Annotated[Path, typer.Option(help="Folder of the dataset.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a finished dataset.")]
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of the stored order and of any split.")]


@app.command()
def digits(out: Out = Path("data/digits"), seed: Seed = 0, overwrite: Overwrite = False) -> None:
    """scikit-learn's 1,797 handwritten digits, 80/20, stratified; nothing is downloaded.

    For example: ted-stream prepare digits --out data/digits
    """
    from ted_stream.pipelines.corpora.digits import prepare_digits

    _show(prepare_digits(out, seed=seed, overwrite=overwrite), out)


Source = Annotated[
    Path | None,
    typer.Option(
        help="Folder, or tar of one, with train/<class>/*.jpg|png and test/<class>/…; else torchvision downloads.",
        show_default=False,
    ),
]
Download = Annotated[Path, typer.Option(help="Where torchvision puts its download.")]
Workers = Annotated[int, typer.Option(min=1, help="Processes that decode images.", show_default="all cores")]
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@app.command()
def cifar10(
    out: Out = Path("data/cifar10"),
    source: Source = None,
    download_folder: Download = Path("data/downloads"),
    workers: Workers = CORES,
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """CIFAR-10 as decoded pixels, in a seeded random order.

    For example: ted-stream prepare cifar10 --out data/cifar10
    """
    _cifar("cifar10", out, source, download_folder, workers, seed, overwrite)


@app.command()
def cifar100(
    out: Out = Path("data/cifar100"),
    source: Source = None,
    download_folder: Download = Path("data/downloads"),
    workers: Workers = CORES,
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """CIFAR-100 as decoded pixels, in a seeded random order.

    For example: ted-stream prepare cifar100 --out data/cifar100
    """
    _cifar("cifar100", out, source, download_folder, workers, seed, overwrite)


def _cifar(
    name: str, out: Path, source: Path | None, download_folder: Path, workers: int, seed: int, overwrite: bool
) -> None:
    from ted_stream.pipelines.corpora.cifar import prepare_cifar

    with _stages("decode", "write") as progress:
        description = prepare_cifar(
            name,
            out,
            source=source,
            download_folder=download_folder,
            workers=workers,
            seed=seed,
            overwrite=overwrite,
            progress=progress,
        )
    _show(description, out)


class Layout(str, Enum):
    """What a folder with ImageNet looks like."""

    folders = "folders"
    tars = "tars"
    shards = "shards"


@app.command()
def imagenet(
    source: Annotated[
        Path,
        typer.Option(
            help="Folder with train/<class>/*.JPEG and val/<class>/…, with ILSVRC2012's tars and devkit, or with "
            "WebDataset shards.",
            show_default=False,
        ),
    ],
    out: Out = Path("data/imagenet"),
    layout: Annotated[
        Layout | None, typer.Option(help="Which of these, if the folder holds several.", show_default=False)
    ] = None,
    workers: Annotated[
        int, typer.Option(min=1, help="Processes that read and write.", show_default="all cores")
    ] = CORES,
    shard_size: Annotated[int, typer.Option(help="Bytes of a shard at most.")] = 1 << 26,
    seed: Seed = 0,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a finished dataset, or one begun with other settings.")
    ] = False,
) -> None:
    """ImageNet, or any corpus of its form, as JPEG files in a seeded random order; goes on when interrupted.

    For example: ted-stream prepare imagenet --source /data/ILSVRC2012 --out data/imagenet --workers 16
    """
    from ted_stream.pipelines.corpora.imagenet import prepare_imagenet

    with _stages("list", "write") as progress:
        description = prepare_imagenet(
            out,
            source,
            layout=layout.value if layout else None,
            workers=workers,
            seed=seed,
            shard_size=shard_size,
            overwrite=overwrite,
            progress=progress,
        )
    _show(description, out)


Tokenizer = Annotated[str | None, typer.Option(help="Folder, or name on the hub.", show_default=False)]
TrainTokenizer = Annotated[
    int | None,
    typer.Option(
        metavar="VOCAB_SIZE",
        help="Train a byte-level BPE tokenizer of this size on the training split.",
        show_default=False,
    ),
]
MaxLength = Annotated[
    int, typer.Option(help="Longest sample in tokens; longer ones lose their end, and are counted and reported.")
]
SkipBad = Annotated[
    bool,
    typer.Option(
        "--skip-bad",
        help="Leave records out that cannot be used, count them, and list them in skipped.jsonl; else the first is "
        "refused.",
    ),
]
TextWorkers = Annotated[int, typer.Option(min=1, help="Processes that tokenize, at most.", show_default="all cores")]


@app.command()
def instructions(
    train: Annotated[
        list[Path] | None,
        typer.Option(help="JSON lines or JSON arrays; may be given several times.", show_default=False),
    ] = None,
    out: Out = Path("data/instructions"),
    test: Annotated[list[Path] | None, typer.Option(help="The same for testing.", show_default=False)] = None,
    hub: Annotated[
        str | None,
        typer.Option(
            metavar="NAME[:CONFIG]",
            help="Instead of --train, a dataset that Hugging Face's datasets loads.",
            show_default=False,
        ),
    ] = None,
    split: Annotated[str, typer.Option(help="Split of --hub to train on.")] = "train",
    test_split: Annotated[str | None, typer.Option(help="Split of --hub to test on.", show_default=False)] = None,
    test_fraction: Annotated[
        float, typer.Option(help="Share of the training records set aside when there are none to test on.")
    ] = 0.05,
    prompt_field: Annotated[str, typer.Option(help="Field of the prompt.")] = "prompt",
    response_field: Annotated[str, typer.Option(help="Field of the response.")] = "response",
    ignore_field: Annotated[
        list[str] | None,
        typer.Option(
            help="Leave out a field that is otherwise refused, such as context; may be given several times.",
            show_default=False,
        ),
    ] = None,
    tokenizer: Tokenizer = None,
    train_tokenizer: TrainTokenizer = None,
    chat_template: Annotated[
        Path | None,
        typer.Option(help="File with the Jinja template for chats, instead of the tokenizer's.", show_default=False),
    ] = None,
    max_length: MaxLength = 512,
    skip_bad: SkipBad = False,
    workers: TextWorkers = CORES,
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Chats, Alpaca's records or prompts with responses as tokens, with all but the answers masked from the loss.

    For example: ted-stream prepare instructions --train train.jsonl --prompt-field question --tokenizer gpt2
    """
    from ted_stream.cli.show import console
    from ted_stream.pipelines.corpora.instructions import prepare_instructions

    with _stages("read", "tokenize") as progress:
        description = prepare_instructions(
            out,
            train or None,
            test=test or None,
            hub=hub,
            split=split,
            test_split=test_split,
            test_fraction=test_fraction,
            prompt_field=prompt_field,
            response_field=response_field,
            ignored_fields=ignore_field or (),
            tokenizer=tokenizer,
            train_tokenizer_size=train_tokenizer,
            chat_template=chat_template,
            max_length=max_length,
            skip_bad=skip_bad,
            workers=workers,
            seed=seed,
            overwrite=overwrite,
            report=lambda sentence: console.print(sentence, highlight=False),
            progress=progress,
        )
    _show(description, out)


class GlueTask(str, Enum):
    """The tasks of GLUE, but for the diagnostics, which have no labels."""

    cola = "cola"
    sst2 = "sst2"
    mrpc = "mrpc"
    qqp = "qqp"
    stsb = "stsb"
    mnli = "mnli"
    qnli = "qnli"
    rte = "rte"
    wnli = "wnli"


@app.command()
def glue(
    task: Annotated[GlueTask, typer.Argument(help="Which task.")],
    out: Annotated[Path | None, typer.Option(help="Folder of the dataset.", show_default="data/TASK")] = None,
    source: Annotated[
        Path | None,
        typer.Option(
            help="Folder with train and dev (or validation), .tsv as published or .jsonl; else --hub.",
            show_default=False,
        ),
    ] = None,
    hub: Annotated[
        str,
        typer.Option(metavar="NAME[:CONFIG]", help="A dataset that datasets loads; the configuration is TASK."),
    ] = "nyu-mll/glue",
    split: Annotated[str, typer.Option(help="Split, or file, to train on.")] = "train",
    test_split: Annotated[
        str | None,
        typer.Option(help="Split, or file, to test on.", show_default="dev or validation, of mnli the matched"),
    ] = None,
    tokenizer: Tokenizer = None,
    train_tokenizer: TrainTokenizer = None,
    max_length: MaxLength = 128,
    noise: Annotated[float, typer.Option(help="Share of the training labels that are replaced by another.")] = 0.0,
    skip_bad: SkipBad = False,
    workers: TextWorkers = CORES,
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """A task of GLUE as tokens and labels: classes, or scores of stsb.

    For example: ted-stream prepare glue sst2 --source glue_data/SST-2 --tokenizer bert-base-uncased
    """
    from ted_stream.cli.show import console
    from ted_stream.pipelines.corpora.glue import prepare_glue

    out = out or Path("data", task.value)
    with _stages("read", "tokenize") as progress:
        description = prepare_glue(
            task.value,
            out,
            source=source,
            hub=hub,
            split=split,
            test_split=test_split,
            tokenizer=tokenizer,
            train_tokenizer_size=train_tokenizer,
            max_length=max_length,
            noise=noise,
            skip_bad=skip_bad,
            workers=workers,
            seed=seed,
            overwrite=overwrite,
            report=lambda sentence: console.print(sentence, highlight=False),
            progress=progress,
        )
    _show(description, out)


@contextmanager
def _stages(*stages: str) -> Iterator[Callable[[str, int, int | None], None]]:
    """A progress bar per stage, shown once it begins; yields what the stages tell."""
    from ted_stream.cli.show import progress_bar

    with progress_bar() as bar:
        tasks = {stage: bar.add_task(stage, total=None, visible=False) for stage in stages}
        yield lambda stage, count, total: bar.update(tasks[stage], advance=count, total=total, visible=True)


def _show(description: "Description", out: Path) -> None:
    from ted_stream.cli.show import console

    counts = ", ".join(f"{count:,} {split}" for split, count in description.samples.items())
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    console.print(f"{description.name}: {counts} samples, {decimal(size)} in {out}", highlight=False)
