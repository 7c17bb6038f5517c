"""CIFAR-10 and CIFAR-100, from torchvision's download, a tree of class folders, or a tar of such a tree."""

from __future__ import annotations

import io
import tarfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from ted_stream.export.origins import KeyKind
from ted_stream.processes import in_order

from .images import Place, write_images
from .prepared import Description, new_dataset
from .tars import check_is_file, safe_path

__all__ = ["prepare_cifar"]

SIDE = 32
SUFFIXES = (".jpg", ".jpeg", ".png")
SPLITS = ("train", "test")
CLASSES = {"cifar10": 10, "cifar100": 100}
CHUNK = 512  # files handed to a worker at a time

File = tuple[str, str, str, Place, bytes]  # split, class, file name, file and key in the source, content
Splits = dict[str, tuple[np.ndarray, np.ndarray]]  # images and labels
Places = dict[str, list[Place]]
Progress = Callable[[str, int, int | None], None]  # stage, samples just done, total if known


def prepare_cifar(
    name: str,
    out: str | Path,
    *,
    source: str | Path | None = None,
    download_folder: str | Path = "data/downloads",
    workers: int = 1,
    seed: int = 0,
    size_limit: int = 1 << 22,
    overwrite: bool = False,
    progress: Progress = lambda *_: None,
) -> Description:
    """Write CIFAR as a prepared dataset of decoded pixels: 3 KB a sample, no image decoding while training.

    A class' index is the position of its name in sorted order, which is also torchvision's. The stored order
    is random, drawn from ``seed`` (see `write_images`).

    Args:
        name: ``cifar10`` or ``cifar100``.
        out: the dataset's folder.
        source: a folder with ``train/<class>/*.jpg|png`` and ``test/<class>/…``, or a tar of one (``.tar``,
            ``.tar.gz``, ``.tar.xz``, …), top folders allowed; None downloads through torchvision.
        download_folder: where torchvision puts its download.
        workers: processes that decode images.
        seed: of the stored order.
        size_limit: bytes per shard.
        overwrite: replace a finished dataset.
        progress: told the stage, how many samples were just done, and the total where known.

    Raises:
        FileExistsError: ``out`` is taken (see `new_dataset`).
        FileNotFoundError: ``source`` does not exist.
        ValueError: ``source`` is not such a tree, or an image is not 32×32.
        ConnectionError: the download failed.
    """
    if name not in CLASSES:
        raise ValueError(f"no CIFAR called {name!r}; there is {' and '.join(CLASSES)}.")
    with new_dataset(out, overwrite=overwrite) as folder:
        keys: KeyKind = "index"
        if source is None:
            splits, classes = _download(name, Path(download_folder))
            places: Places = {split: [(None, str(row)) for row in range(len(of[1]))] for split, of in splits.items()}
        else:
            splits, classes, places = _decode(_files(Path(source)), str(source), workers, progress)
            keys = "" if Path(source).is_dir() else "member"
        if len(classes) != CLASSES[name]:
            warnings.warn(f"{source} has {len(classes)} classes; {name} has {CLASSES[name]}.", stacklevel=2)
        total = sum(len(images) for images, _ in splits.values())
        return write_images(
            folder,
            splits,
            name=name,
            classes=classes,
            size_limit=size_limit,
            seed=seed,
            notes={"source": "torchvision" if source is None else str(source)},
            places=places,
            keys=keys,
            progress=lambda count: progress("write", count, total),
        )


def _download(name: str, folder: Path) -> tuple[Splits, list[str]]:
    from torchvision.datasets import CIFAR10, CIFAR100

    builder = {"cifar10": CIFAR10, "cifar100": CIFAR100}[name]
    splits, classes = {}, []
    for split in SPLITS:
        try:
            corpus = builder(str(folder), train=split == "train", download=True)
        except (OSError, RuntimeError) as error:
            raise ConnectionError(
                f"torchvision could not download {name} to {folder} ({error}); "
                "pass --source with a folder of class folders or a tar of one."
            ) from error
        splits[split] = (corpus.data, np.asarray(corpus.targets))
        classes = corpus.classes
    return splits, classes


def _files(source: Path) -> Iterator[File]:
    if source.is_dir():
        return _folder_files(source)
    if source.is_file():
        return _tar_files(source)
    raise FileNotFoundError(f"the source {source} does not exist; name a folder or a tar file.")


def _locate(path: PurePosixPath) -> tuple[str, str, str] | None:
    """Split, class and file name of an image's path, whatever folders are above; None for other files."""
    if len(path.parts) < 3 or path.suffix.lower() not in SUFFIXES or path.parts[-3] not in SPLITS:
        return None
    return path.parts[-3], path.parts[-2], path.parts[-1]


def _folder_files(source: Path) -> Iterator[File]:
    for file in sorted(source.rglob("*")):
        place = _locate(PurePosixPath(source.name, *file.relative_to(source).parts))
        if place is not None and file.is_file():
            yield (*place, (file.relative_to(source).as_posix(), None), file.read_bytes())


def _tar_files(source: Path) -> Iterator[File]:
    """Images of a tar in one streaming pass; nothing is unpacked to disk.

    Raises:
        ValueError: not a tar, or a member's name is absolute, climbs with ``..`` or is a link.
    """
    try:
        with tarfile.open(source, "r|*") as archive:
            for member in archive:
                place = _locate(safe_path(member, source))
                if place is None or member.isdir():
                    continue
                check_is_file(member, source)
                handle = archive.extractfile(member)
                assert handle is not None, "it is a file"
                yield (*place, (source.name, member.name), handle.read())
    except tarfile.TarError as error:
        raise ValueError(f"{source} cannot be read as a tar file: {error}.") from error


def _decode_chunk(chunk: list[File]) -> np.ndarray:
    """Decode images to (n, 32, 32, 3) uint8."""
    images = np.empty((len(chunk), SIDE, SIDE, 3), np.uint8)
    for index, (split, label, name, _, content) in enumerate(chunk):
        try:
            with Image.open(io.BytesIO(content)) as image:
                if image.size != (SIDE, SIDE):
                    width, height = image.size
                    raise ValueError(f"it is {width}×{height}, CIFAR images are {SIDE}×{SIDE}")
                images[index] = np.asarray(image.convert("RGB"))
        except (OSError, ValueError) as error:
            raise ValueError(f"cannot use the image {split}/{label}/{name}: {error}.") from error
    return images


def _decoded(files: Iterable[File], workers: int) -> Iterator[tuple[list[tuple[str, str, str, Place]], np.ndarray]]:
    """Chunks of (split, class, file name, file and key) with their images, in the order of ``files``."""
    files = iter(files)
    chunks = iter(lambda: list(islice(files, CHUNK)), [])
    for chunk, images in in_order(_decode_chunk, chunks, workers):
        yield [file[:4] for file in chunk], images


def _decode(files: Iterable[File], source: str, workers: int, progress: Progress) -> tuple[Splits, list[str], Places]:
    places, blocks = [], []
    for names, images in _decoded(files, workers):
        places.extend(names)
        blocks.append(images)
        progress("decode", len(names), None)
    found = {split: {label for where, label, *_ in places if where == split} for split in SPLITS}
    if not all(found.values()):
        raise ValueError(
            f"{source} has no images of train/<class>/*.jpg|png and test/<class>/… "
            f"(found {len(found['train'])} classes in train, {len(found['test'])} in test)."
        )
    if found["train"] != found["test"]:
        odd = ", ".join(sorted(found["train"] ^ found["test"]))
        raise ValueError(f"{source} has classes in only one of train and test: {odd}.")
    classes = sorted(found["train"])
    index = {label: position for position, label in enumerate(classes)}
    images = np.concatenate(blocks)
    # Sorted by name first, so that a folder and a tar of it give the same dataset.
    order = sorted(range(len(places)), key=lambda row: places[row][:3])
    splits, named = {}, {}
    for split in SPLITS:
        rows = [row for row in order if places[row][0] == split]
        splits[split] = (images[rows], np.array([index[places[row][1]] for row in rows]))
        named[split] = [places[row][3] for row in rows]
    return splits, classes, named
