"""ImageNet, from class folders, the official tars, or WebDataset shards: the files' bytes as they are, in MDS.

A source is listed first: of every image its class and where its bytes lie, in a file of their own or in a tar, from
which nothing is unpacked. The stored order and the shards' borders follow from the list, so shards can be written
by any number of processes, and those that are there already are left alone when an interrupted preparation goes on.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import numpy as np
from PIL import Image

from ted_stream.export import write_origins
from ted_stream.export.origins import KeyKind
from ted_stream.files import write_bytes
from ted_stream.processes import in_order

from .prepared import DATASET, DESCRIPTION_FILE, HASHES, Description, check_free, resumable_dataset
from .tars import check_is_file, safe_path

__all__ = ["LAYOUTS", "prepare_imagenet"]

KEYS: dict[str, KeyKind] = {"folders": "", "tars": "member", "shards": "webdataset"}  # of the samples of each layout
LAYOUTS = tuple(KEYS)
SUFFIXES = (".jpg", ".jpeg", ".png")
TRAIN_TAR = "ILSVRC2012_img_train.tar"
TEST_TAR = "ILSVRC2012_img_val.tar"
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
TEST_NAMES = ("val", "validation", "test")  # the first that is there; ImageNet's own test images have no labels
SPLIT_IN_NAME = re.compile(r"(?<![a-z])(train|val|validation|test)(?![a-z])")

# What ImageNet's pixels are normalised by everywhere (in units of 0 to 255), so that figures compare.
MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)

SAMPLE_BYTES = 16  # of a sample beside its image: the sample's offset, the image's size, the label
MAX_SHARD_BYTES = 2**32 - 1  # MDS keeps offsets in 32 bits
SCRATCH = "scratch"  # in the working folder: shards that are being written
HASHED = "hashes"  # there too: a file of hashes for each shard that was written

Progress = Callable[[str, int, int | None], None]  # stage, samples just done, total if known


class Sample(NamedTuple):
    """One image of a source.

    Attributes:
        label: the class index.
        name: the image's name without folder and suffix; orders the images of a class.
        file: what holds it, relative to the source.
        offset: where it starts there, in bytes.
        size: in bytes.
        modified: when the file was, in nanoseconds.
        key: what names it within the file: WebDataset's key, or the member of a tar; None if the file is the image.
    """

    label: int
    name: str
    file: str
    offset: int
    size: int
    modified: int
    key: str | None = None


class Source(NamedTuple):
    """What a source holds: class names by index, and the images of each split."""

    classes: Sequence[str]
    splits: Mapping[str, list[Sample]]


@dataclass(frozen=True)
class Shard:
    """A shard to write: the number-th of its split, and the bytes that its file will have."""

    split: str
    number: int
    samples: Sequence[Sample]
    size: int

    @property
    def file(self) -> str:
        """Its file name, as streaming names it."""
        return f"shard.{self.number:05}.mds"


def prepare_imagenet(
    out: str | Path,
    source: str | Path,
    *,
    layout: str | None = None,
    workers: int = 1,
    seed: int = 0,
    shard_size: int = 1 << 26,
    overwrite: bool = False,
    progress: Progress = lambda *_: None,
) -> Description:
    """Write ImageNet, or anything of its form, as a prepared dataset of JPEG files.

    Sources are folders. ``folders`` holds ``train/<class>/*.JPEG`` and ``val/<class>/…`` (or ``validation``, or
    ``test``); a class' index is the position of its name in sorted order, which is also torchvision's. ``tars``
    holds the official `TRAIN_TAR`, `TEST_TAR` and `DEVKIT`. ``shards`` holds WebDataset's ``*.tar`` with ``train``
    or ``val`` in their names and an image and a ``cls`` (the class index) per sample.

    The stored order is random, drawn from ``seed`` over the images sorted by class and name; where names agree,
    all three layouts give the same shards. Every image's header must be one of a JPEG or PNG, and its end must be
    there; pixels are not decoded, which would take hours.

    Interrupted, it leaves a hidden folder beside ``out``, with which the same call goes on.

    Args:
        out: the dataset's folder.
        source: a folder.
        layout: one of `LAYOUTS`; None finds out.
        workers: processes that read and write.
        seed: of the stored order.
        shard_size: bytes that a shard has at most, unless a single image is larger.
        overwrite: replace a finished dataset, and discard an unfinished one of other settings.
        progress: told the stage, how many samples were just done, and the total where known.

    Raises:
        FileExistsError: ``out`` is taken, or was begun otherwise (see `resumable_dataset`).
        FileNotFoundError: the source, or a part of it, does not exist.
        ValueError: the source cannot be used as it is, or an image is damaged.
    """
    source = Path(source)
    if not 1 <= shard_size <= MAX_SHARD_BYTES:
        raise ValueError(f"shard_size is {shard_size}, expected 1 to {MAX_SHARD_BYTES} bytes.")
    check_free(out, overwrite=overwrite)  # before minutes of listing
    layout = _layout(source, layout)
    classes, splits = LISTINGS[layout](source, partial(progress, "list"))
    for split, samples in splits.items():
        if not samples:
            raise ValueError(f"{source} has no {split} images ({', '.join(SUFFIXES)}).")
        samples.sort(key=lambda sample: (sample.label, sample.name, sample.file, sample.offset))
    plan = {"layout": layout, "seed": seed, "shard_size": shard_size, "source": _fingerprint(classes, splits)}
    with resumable_dataset(out, plan, overwrite=overwrite) as work:
        config = _config(shard_size)
        head = json.dumps(config, sort_keys=True).encode()
        dataset = work / DATASET
        shards = {split: _shards(split, samples, shard_size, len(head), seed) for split, samples in splits.items()}
        _write_shards(source, work, [shard for split in shards.values() for shard in split], head, workers, progress)
        for split, written in shards.items():
            index = {"shards": [_entry(work, shard, config) for shard in written], "version": 2}
            write_bytes(dataset / split / "index.json", json.dumps(index, sort_keys=True).encode())
            origins = ((sample.file, sample.key, sample.label) for shard in written for sample in shard.samples)
            write_origins(dataset / split, origins, key=KEYS[layout], source=str(source))
        description = Description(
            kind="jpeg",
            name="imagenet",
            samples={split: len(samples) for split, samples in splits.items()},
            classes=tuple(classes),
            mean=MEAN,
            std=STD,
            notes={"seed": seed, "source": str(source), "layout": layout},
        )
        write_bytes(dataset / DESCRIPTION_FILE, description.to_json().encode())
    return description


def _layout(source: Path, wanted: str | None) -> str:
    if not source.is_dir():
        raise FileNotFoundError(f"the source {source} is no folder; name one that holds ImageNet.")
    if wanted is not None:
        if wanted not in LAYOUTS:
            raise ValueError(f"no layout {wanted!r}; there is {', '.join(LAYOUTS)}.")
        return wanted
    there = {
        "folders": (source / "train").is_dir(),
        "tars": (source / TRAIN_TAR).is_file(),
        "shards": "train" in _shard_files(source),
    }
    found = [name for name, is_there in there.items() if is_there]
    if not found:
        raise ValueError(
            f"{source} holds neither train/<class>/ nor {TRAIN_TAR} nor WebDataset shards (*.tar with 'train' in "
            "their names)."
        )
    if len(found) > 1:
        raise ValueError(f"{source} holds {' and '.join(found)}; choose one with --layout.")
    return found[0]


# Layouts: each lists a source, without reading images.


def _list_folders(source: Path, progress: Callable[[int, int | None], None]) -> Source:
    test = next((name for name in TEST_NAMES if (source / name).is_dir()), None)
    if test is None:
        raise FileNotFoundError(f"{source} has no folder {' or '.join(TEST_NAMES)} of images to test with.")
    folders = {"train": source / "train", "test": source / test}
    classes = {split: sorted(path.name for path in folder.iterdir() if path.is_dir())
               for split, folder in folders.items()}  # fmt: skip
    _check_same(classes, source)
    splits: dict[str, list[Sample]] = {}
    for split, folder in folders.items():
        samples = splits[split] = []
        for label, name in enumerate(classes[split]):
            before = len(samples)
            for entry in os.scandir(folder / name):
                if _is_image(entry.name):
                    status = entry.stat()
                    file = f"{folder.name}/{name}/{entry.name}"
                    samples.append(Sample(label, _stem(file), file, 0, status.st_size, status.st_mtime_ns))
            if len(samples) == before:
                raise ValueError(f"{folder / name} has no images ({', '.join(SUFFIXES)}).")
            progress(len(samples) - before, None)
    return Source(classes["train"], splits)


def _list_tars(source: Path, progress: Callable[[int, int | None], None]) -> Source:
    for name in (TRAIN_TAR, TEST_TAR, DEVKIT):
        if not (source / name).is_file():
            raise FileNotFoundError(f"{source} has no {name}; it is needed beside the others.")
    wnids = _test_classes(source / DEVKIT)
    train = {}
    with _tar(source / TRAIN_TAR) as tars:
        for tar, content in tars:
            if not tar.name.endswith(".tar"):
                continue
            with _tar(f"{source / TRAIN_TAR}, {tar.name}", content()) as files:
                images = train[_stem(tar.name)] = [
                    (member.name, tar.offset_data + member.offset_data, member.size)
                    for member, _ in files
                    if _is_image(member.name)
                ]
            progress(len(images), None)
    _check_same({"train": sorted(train), "test": sorted(set(wnids))}, source)
    label = {wnid: index for index, wnid in enumerate(sorted(train))}
    modified = (source / TRAIN_TAR).stat().st_mtime_ns
    splits = {
        "train": [
            Sample(label[wnid], _stem(name), TRAIN_TAR, offset, size, modified, f"{wnid}.tar/{name}")
            for wnid, images in train.items()
            for name, offset, size in images
        ],
        "test": [],
    }
    modified = (source / TEST_TAR).stat().st_mtime_ns
    with _tar(source / TEST_TAR) as files:
        tests = [member for member, _ in files if _is_image(member.name)]
    for member in tests:
        name = _stem(member.name)
        number = name.rpartition("_")[2]
        if not number.isdecimal() or not 1 <= int(number) <= len(wnids):
            raise ValueError(
                f"{source / TEST_TAR} holds {member.name!r}, which ends in no number from 1 to {len(wnids)}, "
                f"so {DEVKIT} has no class for it."
            )
        index = label[wnids[int(number) - 1]]
        place = (TEST_TAR, member.offset_data, member.size, modified, member.name)
        splits["test"].append(Sample(index, name, *place))
    progress(len(splits["test"]), None)
    return Source(sorted(train), splits)


def _test_classes(devkit: Path) -> list[str]:
    """The class of every validation image, by its number less 1."""
    from scipy.io import loadmat

    wanted = {"data/meta.mat": b"", "data/ILSVRC2012_validation_ground_truth.txt": b""}
    with _tar(devkit, mode="r:gz") as files:
        for member, content in files:
            name = "/".join(member.name.split("/")[-2:])
            if name in wanted:
                wanted[name] = content().read()
    for name, content in wanted.items():
        if not content:
            raise ValueError(f"{devkit} has no {name}; it is not the devkit of ILSVRC2012's tasks 1 and 2.")
    meta, truth = wanted.values()
    # Rows of id, wnid, words, gloss, number of children, …
    synsets = loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"]
    wnid = {int(row[0]): str(row[1]) for row in synsets}
    numbers = [int(line) for line in truth.split()]
    for number in numbers:
        if number not in wnid:
            raise ValueError(f"{devkit}: the ground truth names class {number}, which meta.mat does not have.")
    return [wnid[number] for number in numbers]


def _list_shards(source: Path, progress: Callable[[int, int | None], None]) -> Source:
    files = _shard_files(source)
    if "train" not in files or "test" not in files:
        raise FileNotFoundError(
            f"{source} needs WebDataset shards of both splits: *.tar with 'train' and with {' or '.join(TEST_NAMES)} "
            "in their names."
        )
    splits: dict[str, list[Sample]] = {}
    for split, names in files.items():
        splits[split] = []
        for name in names:
            samples = _list_shard(source, name)
            splits[split] += samples
            progress(len(samples), None)
    labels = {sample.label for samples in splits.values() for sample in samples}
    return Source([str(label) for label in range(max(labels, default=-1) + 1)], splits)


def _list_shard(source: Path, file: str) -> list[Sample]:
    where = source / file
    images: dict[str, tarfile.TarInfo] = {}
    labels: dict[str, int] = {}
    with _tar(where) as files:
        for member, content in files:
            folder, _, name = member.name.rpartition("/")
            stem, _, suffix = name.partition(".")  # WebDataset's key ends at the name's first dot
            key = f"{folder}/{stem}"
            if suffix.lower() == "cls":
                text = content().read(32).strip()
                if not re.fullmatch(rb"\d{1,6}", text):
                    raise ValueError(f"{where} holds {member.name!r} with {text!r}, expected a class index.")
                _add(labels, key, int(text), where)
            elif f".{suffix.lower()}" in SUFFIXES:
                _add(images, key, member, where)
    for key in images.keys() ^ labels.keys():
        raise ValueError(f"{where} holds {key.lstrip('/')!r} without {'its image' if key in labels else 'a cls'}.")
    modified = where.stat().st_mtime_ns
    return [
        Sample(
            labels[key], key.rpartition("/")[2], file, member.offset_data, member.size, modified, key.removeprefix("/")
        )
        for key, member in images.items()
    ]


def _shard_files(source: Path) -> dict[str, list[str]]:
    """The names of WebDataset shards by split."""
    files: dict[str, list[str]] = {}
    for path in sorted(source.glob("*.tar")):
        found = SPLIT_IN_NAME.search(path.stem.lower())
        if found and path.name not in (TRAIN_TAR, TEST_TAR):
            files.setdefault(found[1], []).append(path.name)
    test = next((name for name in TEST_NAMES if name in files), None)
    return {split: files[name] for split, name in (("train", "train"), ("test", test)) if name in files}


def _add(known: dict[str, Any], key: str, value: Any, where: Path) -> None:
    if key in known:
        raise ValueError(f"{where} holds {key.lstrip('/')!r} twice.")
    known[key] = value


LISTINGS = {"folders": _list_folders, "tars": _list_tars, "shards": _list_shards}


Opener = Callable[[], IO[bytes]]


@contextmanager
def _tar(
    where: str | Path, file: IO[bytes] | None = None, *, mode: Literal["r:", "r:gz"] = "r:"
) -> Iterator[Iterator[tuple[tarfile.TarInfo, Opener]]]:
    """The files in a tar, each with a function that opens it; nothing is unpacked to disk.

    Args:
        where: the tar's path, also for messages.
        file: the tar, if it is not on disk.
        mode: uncompressed, where offsets are wanted.

    Raises:
        ValueError: it is no such tar, it is cut off, or a member is unsafe or not a plain file.
    """
    try:
        with tarfile.open(None if file else where, mode, file) as archive:
            yield _files(archive, where)
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise ValueError(f"{where} cannot be read as a tar file: {error}.") from error


def _files(archive: tarfile.TarFile, where: str | Path) -> Iterator[tuple[tarfile.TarInfo, Opener]]:
    for member in archive:
        safe_path(member, where)
        if not member.isdir():
            check_is_file(member, where)
            yield member, lambda member=member: _not_none(archive.extractfile(member))


def _not_none(file: IO[bytes] | None) -> IO[bytes]:
    assert file is not None, "it is a plain file"
    return file


def _is_image(path: str) -> bool:
    name = os.path.basename(path)
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def _stem(path: str) -> str:
    return os.path.splitext(os.path.basename(path))[0]


def _check_same(classes: Mapping[str, Sequence[str]], source: Path) -> None:
    odd = sorted(set(classes["train"]) ^ set(classes["test"]))
    if odd:
        more = f" and {len(odd) - 5} more" if len(odd) > 5 else ""
        raise ValueError(f"{source} has classes in only one of train and test: {', '.join(odd[:5])}{more}.")


# The order, the shards, and writing them.


def _fingerprint(classes: Sequence[str], splits: Mapping[str, Sequence[Sample]]) -> str:
    """A hash of all that a listing says."""
    digest = hashlib.sha256(repr(classes).encode())
    for split, samples in splits.items():
        for sample in samples:
            digest.update(repr((split, *sample[:-1])).encode())  # the key is in the file, at the offset
    return digest.hexdigest()


def _config(shard_size: int) -> dict[str, Any]:
    """What every shard's head and its entry in the index say of its format."""
    return {
        "version": 2,
        "format": "mds",
        "compression": None,
        "hashes": HASHES,
        "size_limit": shard_size,
        "column_names": ["image", "label"],
        "column_encodings": ["bytes", "int"],
        "column_sizes": [None, 8],
    }


def _entry(work: Path, shard: Shard, config: Mapping[str, Any]) -> dict[str, Any]:
    """A written shard's entry in the index."""
    file = {"basename": shard.file, "bytes": shard.size, "hashes": json.loads(_hashes_of(work, shard).read_bytes())}
    return {**config, "samples": len(shard.samples), "raw_data": file, "zip_data": None}


def _shards(split: str, samples: Sequence[Sample], shard_size: int, head_size: int, seed: int) -> list[Shard]:
    """A split's samples in their stored order, cut into shards where streaming's writer would."""
    shards: list[Shard] = []
    empty = 8 + head_size  # the number of samples, the end's offset, the head
    chosen, size = [], empty
    for index in np.random.default_rng(seed).permutation(len(samples)):
        sample = samples[index]
        if chosen and size + sample.size + SAMPLE_BYTES > shard_size:
            shards.append(Shard(split, len(shards), chosen, size))
            chosen, size = [], empty
        chosen.append(sample)
        size += sample.size + SAMPLE_BYTES
    return [*shards, Shard(split, len(shards), chosen, size)]


def _write_shards(
    source: Path, work: Path, shards: Sequence[Shard], head: bytes, workers: int, progress: Progress
) -> None:
    """Write the shards that are not there yet.

    Raises:
        ValueError: images are damaged. All others are looked at first, so that one message names them all.
    """
    shutil.rmtree(work / SCRATCH, ignore_errors=True)
    for folder in (work / SCRATCH, *(work / DATASET / split for split in {shard.split for shard in shards})):
        folder.mkdir(exist_ok=True)
    total = sum(len(shard.samples) for shard in shards)
    missing = [shard for shard in shards if not _is_written(work, shard)]
    progress("write", total - sum(len(shard.samples) for shard in missing), total)
    damaged: list[str] = []
    for shard, found in in_order(partial(_write_shard, source, work, head), missing, workers):
        damaged += found
        progress("write", len(shard.samples), total)
    if damaged:
        more = f" and {len(damaged) - 10} more" if len(damaged) > 10 else ""
        raise ValueError(
            f"cannot use {len(damaged)} of {total} images of {source}: {'; '.join(damaged[:10])}{more}. Replace or "
            "remove them and prepare again with --overwrite."
        )


def _is_written(work: Path, shard: Shard) -> bool:
    file = work / DATASET / shard.split / shard.file
    return file.exists() and file.stat().st_size == shard.size and _hashes_of(work, shard).exists()


def _hashes_of(work: Path, shard: Shard) -> Path:
    """Where the hashes of a shard wait for the index; there before the shard is."""
    return work / HASHED / shard.split / shard.file


def _write_shard(source: Path, work: Path, head: bytes, shard: Shard) -> list[str]:
    """Write one shard's file; runs in a worker.

    The bytes are those of streaming's MDSWriter. It is not used, since importing it takes a worker ten seconds and
    most of a gigabyte, and since it collects a shard in memory several times over.

    Returns:
        The images that are damaged, with what is wrong; if there are any, the shard is not written.
    """
    damaged: list[str] = []
    # The folder is private to this process: one of a killed preparation may write its last words yet.
    with tempfile.TemporaryDirectory(dir=work / SCRATCH) as folder, Path(folder, shard.file).open("wb") as file:
        count = len(shard.samples)
        sizes = [sample.size + SAMPLE_BYTES - 4 for sample in shard.samples]
        offsets = np.cumsum([4 + 4 * (count + 1) + len(head), *sizes])
        hashes = [hashlib.new(name) for name in HASHES]

        def write(part: bytes) -> None:
            file.write(part)
            for of_shard in hashes:
                of_shard.update(part)

        write(np.uint32(count).tobytes() + offsets.astype(np.uint32).tobytes() + head)
        for sample in shard.samples:
            content = _read(source, sample)
            problem = _problem(content, sample)
            if problem:
                damaged.append(f"{sample.file} ({sample.name}): {problem}")
            write(np.uint32(sample.size).tobytes() + content + np.int64(sample.label).tobytes())
        if not damaged:
            file.flush()
            os.fsync(file.fileno())
            write_bytes(_hashes_of(work, shard), json.dumps({of.name: of.hexdigest() for of in hashes}).encode())
            Path(file.name).rename(work / DATASET / shard.split / shard.file)
    return damaged


def _read(source: Path, sample: Sample) -> bytes:
    with (source / sample.file).open("rb", buffering=0) as file:
        return os.pread(file.fileno(), sample.size, sample.offset)


def _problem(content: bytes, sample: Sample) -> str | None:
    """What is wrong with an image as far as its header and its end tell; None if nothing is."""
    if len(content) < sample.size:
        return f"only {len(content)} of its {sample.size} bytes can be read"
    file = io.BytesIO(content)
    try:
        with Image.open(file, formats=("JPEG", "PNG")) as image:
            if image.format == "PNG":
                image.verify()  # checksums to the end; JPEG has none
            # Within a scan, which starts where the header ends, the end marker cannot occur by chance.
            elif content.find(b"\xff\xd9", file.tell()) < 0:
                return "its end is missing"
    except Image.UnidentifiedImageError:
        return "it is neither JPEG nor PNG"
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        return str(error)
    return None
