"""A prepared dataset: a folder with one MDS folder per split and ``dataset.json``, its description."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from ted_stream import folders
from ted_stream.files import is_remote, join, read_bytes
from ted_stream.folders import DATASET

__all__ = [
    "DATASET",
    "DESCRIPTION_FILE",
    "HASHES",
    "Description",
    "check_free",
    "content_digest",
    "new_dataset",
    "read_description",
    "resumable_dataset",
]

DESCRIPTION_FILE = "dataset.json"
HASHES = ["sha1"]  # of every shard, by which skip-lists know its content
FORMAT_VERSION = 1
_KIND = "prepared dataset"


@dataclass(frozen=True, kw_only=True)
class Description:
    """What training needs to know about a prepared dataset without opening a shard.

    Attributes:
        kind: ``images`` (columns ``image``, uint8 pixels of one shape, and ``label``), ``jpeg`` (``image``, the
            bytes of a JPEG or PNG file of any size, and ``label``), ``instructions`` (token columns
            ``input_ids`` and ``labels``) or ``texts`` (token columns ``input_ids`` and, of some tokenizers,
            ``token_type_ids``, and ``labels``, a class index or a score).
        name: the corpus, for people.
        samples: number of samples of each split, by split name.
        shape: images only: the array shape of one sample, (H, W) or (H, W, C).
        classes: images, jpeg and texts: class names; position is the class index. Texts with scores have none.
        mean: images and jpeg: what is taken off each channel, in raw pixel units; of images, the training split's mean.
        std: images and jpeg: what each channel is then divided by; of images, the training split's standard deviation.
        vocab_size: instructions and texts: number of embeddings that a model needs.
        max_length: instructions and texts: the longest sample, in tokens.
        pad_id: instructions and texts: the token id that fills a batch.
        notes: how the dataset was made: counts, seed, source.
    """

    kind: Literal["images", "jpeg", "instructions", "texts"]
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

    def tokens(self, split: str) -> int | None:
        """The tokens of a split's samples, where its preparation counted them."""
        return self.notes.get("counts", {}).get(split, {}).get("tokens")

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


def content_digest(path: str | os.PathLike[str]) -> str:
    """Hex sha256 of the indices of a prepared dataset's splits, which hold the hashes of its shards.

    Args:
        path: the dataset's folder, local or a URI.

    Raises:
        FileNotFoundError: there is no finished dataset, or no index of a split.
    """
    digest = hashlib.sha256()
    for split in sorted(read_description(path).samples):
        digest.update(split.encode() + read_bytes(join(join(path, split), "index.json")))
    return digest.hexdigest()


def check_free(out: str | Path, *, overwrite: bool = False) -> None:
    """Refuse a place that a dataset cannot be put at; see :func:`ted_stream.folders.check_free`."""
    folders.check_free(out, overwrite=overwrite, kind=_KIND, is_finished=_is_finished)


def new_dataset(out: str | Path, *, overwrite: bool = False) -> AbstractContextManager[Path]:
    """A folder to write a dataset into, which becomes ``out`` only when the block ends well.

    See :func:`ted_stream.folders.new_folder`.

    Args:
        out: where the dataset goes.
        overwrite: replace a finished dataset.

    Raises:
        FileExistsError: ``out`` is taken (see `check_free`).
    """
    return folders.new_folder(out, overwrite=overwrite, kind=_KIND, is_finished=_is_finished)


def resumable_dataset(
    out: str | Path, plan: Mapping[str, Any], *, overwrite: bool = False
) -> AbstractContextManager[Path]:
    """A working folder that outlives an interruption; its folder `DATASET` becomes ``out`` when the block ends well.

    See :func:`ted_stream.folders.resumable_folder`.

    Args:
        out: where the dataset goes.
        plan: all that decides the dataset's bytes, as JSON values.
        overwrite: replace a finished dataset, and discard an unfinished one of another plan.

    Raises:
        FileExistsError: ``out`` is taken (see `check_free`), is being prepared by another process at this moment, or
            was begun with another plan.
    """
    return folders.resumable_folder(out, plan, overwrite=overwrite, kind=_KIND, is_finished=_is_finished)


def _is_finished(out: Path) -> bool:
    return (out / DESCRIPTION_FILE).exists() or any(out.glob("*/index.json"))
