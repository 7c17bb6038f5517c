"""A prepared dataset: a folder with one MDS folder per split and ``dataset.json``, its description."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from ted_stream.files import is_remote, join, read_bytes, write_bytes

__all__ = [
    "DATASET",
    "DESCRIPTION_FILE",
    "HASHES",
    "Description",
    "check_free",
    "new_dataset",
    "read_description",
    "resumable_dataset",
]

DESCRIPTION_FILE = "dataset.json"
DATASET = "dataset"  # what becomes the dataset, in the folder of `resumable_dataset`
HASHES = ["sha1"]  # of every shard, by which skip-lists know its content
FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Description:
    """What training needs to know about a prepared dataset without opening a shard.

    Attributes:
        kind: ``images`` (columns ``image``, uint8 pixels of one shape, and ``label``), ``jpeg`` (``image``, the
            bytes of a JPEG or PNG file of any size, and ``label``) or ``instructions`` (token columns
            ``input_ids`` and ``labels``).
        name: the corpus, for people.
        samples: number of samples of each split, by split name.
        shape: images only: the array shape of one sample, (H, W) or (H, W, C).
        classes: images and jpeg: class names; position is the class index.
        mean: images and jpeg: what is taken off each channel, in raw pixel units; of images, the training split's mean.
        std: images and jpeg: what each channel is then divided by; of images, the training split's standard deviation.
        vocab_size: instructions only: number of embeddings that a model needs.
        max_length: instructions only: the longest sample, in tokens.
        pad_id: instructions only: the token id that fills a batch.
        notes: how the dataset was made: counts, seed, source.
    """

    kind: Literal["images", "jpeg", "instructions"]
    name: str
    samples: Mapping[str, int]
    shape: tuple[int, ...] = ()
    classes: tuple[str, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    vocab_size: int = 0
    max_length: int = 0
    pad_id: int = 0
    notes: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """The text of ``dataset.json``."""
        return json.dumps({"format": FORMAT_VERSION, **asdict(self)}, indent=2) + "\n"

    @staticmethod
    def from_json(text: str, where: str) -> Description:
        """Read the text of ``dataset.json``.

        Args:
            text: the file's text.
            where: its address, for messages.

        Raises:
            ValueError: it is not JSON, or of another format version.
        """
        try:
            raw = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"{where} is not JSON ({error}); prepare the dataset again.") from error
        version = raw.pop("format", None)
        if version != FORMAT_VERSION:
            raise ValueError(
                f"{where} has format version {version!r}, this ted-stream reads {FORMAT_VERSION}; "
                "prepare the dataset again with this version."
            )
        for name in ("shape", "classes", "mean", "std"):
            raw[name] = tuple(raw[name])
        return Description(**raw)


def read_description(path: str | os.PathLike[str]) -> Description:
    """Read a prepared dataset's description.

    Args:
        path: the dataset's folder, local or a URI that streaming's downloaders take.

    Raises:
        FileNotFoundError: no finished dataset is at ``path``.
        ValueError: the description cannot be read.
    """
    if is_remote(path):
        source = join(path, DESCRIPTION_FILE)
        return Description.from_json(read_bytes(source).decode(), source)
    file = Path(path) / DESCRIPTION_FILE
    if not file.is_file():
        raise FileNotFoundError(
            f"no prepared dataset in {path} ({DESCRIPTION_FILE} is missing); make one with `ted-stream prepare`."
        )
    return Description.from_json(file.read_text(), str(file))


def check_free(out: str | Path, *, overwrite: bool = False) -> None:
    """Refuse a place that a dataset cannot be put at.

    Raises:
        ValueError: ``out`` is the working folder, as an empty path is.
        FileExistsError: ``out`` holds a dataset and ``overwrite`` is off, or holds anything else.
    """
    out = Path(out)
    if out.resolve() == Path.cwd():
        raise ValueError("--out is empty, or the working folder; name the folder that the dataset is to become.")
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"{out} is a file; name a folder that does not exist yet.")
    occupied = out.exists() and any(out.iterdir())
    finished = (out / DESCRIPTION_FILE).exists() or any(out.glob("*/index.json"))
    if occupied and not finished:
        raise FileExistsError(f"{out} holds files that are no prepared dataset; name another folder.")
    if occupied and not overwrite:
        raise FileExistsError(
            f"{out} holds a finished dataset; pass --overwrite to replace it, or name another folder."
        )


@contextmanager
def new_dataset(out: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A folder to write a dataset into, which becomes ``out`` only when the block ends well.

    The folder is a hidden sibling of ``out``, so that an interrupted run never leaves anything that looks
    finished; it is renamed at the end and removed on failure.

    Args:
        out: where the dataset goes.
        overwrite: replace a finished dataset.

    Yields:
        The folder to write into.

    Raises:
        FileExistsError: ``out`` is taken (see `check_free`).
    """
    out = Path(out).resolve()
    check_free(out, overwrite=overwrite)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.partial-", dir=out.parent))
    try:
        partial.chmod(0o755)
        yield partial
        _put(partial, out, overwrite)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def resumable_dataset(out: str | Path, plan: Mapping[str, Any], *, overwrite: bool = False) -> Iterator[Path]:
    """A working folder that outlives an interruption; its folder `DATASET` becomes ``out`` when the block ends well.

    It is a hidden sibling of ``out`` and holds the plan that it was begun with: the same plan goes on with what is
    there, another is refused.

    Args:
        out: where the dataset goes.
        plan: all that decides the dataset's bytes, as JSON values.
        overwrite: replace a finished dataset, and discard an unfinished one of another plan.

    Yields:
        The working folder, with `DATASET` in it.

    Raises:
        FileExistsError: ``out`` is taken (see `check_free`), is being prepared by another process at this moment, or
            was begun with another plan.
    """
    out = Path(out).resolve()
    check_free(out, overwrite=overwrite)
    work = out.parent / f".{out.name}.unfinished"
    work.mkdir(parents=True, exist_ok=True)
    with (work / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise FileExistsError(f"another process is preparing {out} at this moment; wait for it.") from error
        file = work / "plan.json"
        earlier = json.loads(file.read_text()) if file.exists() else None
        if earlier is not None and earlier != plan and not overwrite:
            odd = ", ".join(name for name in sorted({*plan, *earlier}) if plan.get(name) != earlier.get(name))
            raise FileExistsError(
                f"{work} holds an unfinished preparation that differs in: {odd}. Prepare with what it was begun with "
                "to go on, or pass --overwrite to begin anew."
            )
        if earlier != plan:
            for path in work.iterdir():
                if path.is_dir():
                    shutil.rmtree(path)
            write_bytes(file, json.dumps(plan).encode())
        (work / DATASET).mkdir(exist_ok=True)
        yield work
        _put(work / DATASET, out, overwrite)
        shutil.rmtree(work)


def _put(folder: Path, out: Path, overwrite: bool) -> None:
    """Rename a folder to ``out``, which is free, empty, or a dataset to replace."""
    check_free(out, overwrite=overwrite)  # it may have been taken since
    if not out.exists() or not any(out.iterdir()):
        folder.rename(out)  # replaces an empty folder
        return
    old = Path(tempfile.mkdtemp(prefix=f".{out.name}.old-", dir=out.parent))
    out.rename(old / out.name)
    folder.rename(out)
    shutil.rmtree(old)
