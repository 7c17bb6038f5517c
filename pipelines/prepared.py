"""A prepared dataset: a folder with one MDS folder per split and ``dataset.json``, its description."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

__all__ = ["DESCRIPTION_FILE", "Description", "is_uri", "new_dataset", "read_description"]

DESCRIPTION_FILE = "dataset.json"
FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Description:
    """What training needs to know about a prepared dataset without opening a shard.

    Attributes:
        kind: ``images`` (columns ``image`` uint8 and ``label``) or ``instructions`` (token columns
            ``input_ids`` and ``labels``).
        name: the corpus, for people.
        samples: number of samples of each split, by split name.
        shape: images only: the array shape of one sample, (H, W) or (H, W, C).
        classes: images only: class names; position is the class index.
        mean: images only: mean of each channel over the training split, in raw pixel units.
        std: images only: standard deviation of each channel over the training split, in raw pixel units.
        vocab_size: instructions only: number of embeddings that a model needs.
        max_length: instructions only: the longest sample, in tokens.
        pad_id: instructions only: the token id that fills a batch.
        notes: how the dataset was made: counts, seed, source.
    """

    kind: Literal["images", "instructions"]
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


def is_uri(path: str) -> bool:
    """Whether a path names a place that is not the local file system (``s3://…``)."""
    return "://" in path


def read_description(path: str) -> Description:
    """Read a prepared dataset's description.

    Args:
        path: the dataset's folder, local or a URI that streaming's downloaders take.

    Raises:
        FileNotFoundError: no finished dataset is at ``path``.
        ValueError: the description cannot be read.
    """
    if is_uri(path):
        from ted_stream.reading.storage import join, read_bytes

        source = join(path, DESCRIPTION_FILE)
        return Description.from_json(read_bytes(source).decode(), source)
    file = Path(path) / DESCRIPTION_FILE
    if not file.is_file():
        raise FileNotFoundError(
            f"no prepared dataset in {path} ({DESCRIPTION_FILE} is missing); make one with `ted-stream prepare`."
        )
    return Description.from_json(file.read_text(), str(file))


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
        FileExistsError: ``out`` holds a dataset and ``overwrite`` is off, or holds anything else.
    """
    out = Path(out).resolve()
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
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.partial-", dir=out.parent))
    try:
        partial.chmod(0o755)
        yield partial
        if not occupied and out.exists():
            out.rmdir()
        if occupied:
            old = Path(tempfile.mkdtemp(prefix=f".{out.name}.old-", dir=out.parent))
            out.rename(old / out.name)
            partial.rename(out)
            shutil.rmtree(old)
        else:
            partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
