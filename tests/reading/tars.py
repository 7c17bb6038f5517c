"""Tars of small images, in every form that writers give them."""

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image
from webdataset.writer import TarWriter

PER_SHARD = 20
SHARDS = 4
NUM_SAMPLES = PER_SHARD * SHARDS
SIDE = 8


def pixels(index: int) -> np.ndarray:
    """(8, 8, 3) uint8, another one for every sample."""
    return np.random.default_rng(index).integers(0, 256, (SIDE, SIDE, 3), np.uint8)


def png(index: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels(index)).save(stream, "png")
    return stream.getvalue()


def content(index: int) -> dict[str, bytes]:
    return {"png": png(index), "cls": str(index % 7).encode(), "json": b'{"id": %d}' % index}


def add(tar: tarfile.TarFile, name: str, data: bytes = b"", **attributes: object) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    for attribute, value in attributes.items():
        setattr(member, attribute, value)
    tar.addfile(member, io.BytesIO(data))


def write_tar(path: Path, files: dict[str, bytes], form: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=form) as tar:
        for name, data in files.items():
            add(tar, name, data)
    return path


def write_shards(folder: Path) -> str:
    """Four shards of 20 samples, each in another form; returns their pattern."""
    folder.mkdir(parents=True, exist_ok=True)
    indices = iter(range(NUM_SAMPLES))
    with TarWriter(str(folder / "x-0.tar")) as writer:
        for index in (next(indices) for _ in range(PER_SHARD)):
            writer.write({"__key__": f"{index:04}", **content(index)})
    # GNU's long names; directories, and files that are no part of a sample.
    with tarfile.open(folder / "x-1.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        add(tar, ".", type=tarfile.DIRTYPE)
        add(tar, "./README", b"nothing for webdataset")
        for index in (next(indices) for _ in range(PER_SHARD)):
            add(tar, f"./{index // 5}", type=tarfile.DIRTYPE)
            for extension, data in content(index).items():
                add(tar, f"./{index // 5}/{'long' * 30}/{index:04}.{extension.upper()}", data)
            add(tar, "__meta__/info.json", b"{}")
    # Long and foreign names in pax headers.
    with tarfile.open(folder / "x-2.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for index in (next(indices) for _ in range(PER_SHARD)):
            for extension, data in content(index).items():
                add(tar, f"größe/{'訓練' * 40}/{index:04}.{extension}", data)
            add(tar, "LICENSE", b"x" * 5000)
    # Old headers; two dots; the prefix field of ustar.
    with tarfile.open(folder / "x-3.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for index in (next(indices) for _ in range(PER_SHARD)):
            for extension, data in content(index).items():
                add(tar, f"{'a' * 90}/{'b' * 40}/{index:04}.{extension}", data, type=tarfile.AREGTYPE)
    return str(folder / "x-{0..3}.tar")
