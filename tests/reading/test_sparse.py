"""Shards of which a part is on disk: what was written comes back, and nothing else is ever taken for a sample."""

import errno
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from ted_stream.reading.sparse import SparseShard

OFFSETS = np.array([100, 5100, 5100, 9000, 30000, 30010], np.int64)  # one sample is empty
SIZE, SAMPLES = 30050, 5
HEAD = OFFSETS.tobytes()
CONTENT = np.random.default_rng(0).bytes(SIZE)


def parse(head: bytes) -> NDArray[np.int64]:
    return np.frombuffer(head, np.int64)


def opened(path: Path, *, size: int = SIZE, samples: int = SAMPLES) -> SparseShard | None:
    return SparseShard.open(str(path), size=size, samples=samples, parse=parse)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "shard.00000.mds"
    SparseShard.create(str(path), HEAD, size=SIZE, samples=SAMPLES, parse=parse)
    return path


def put(shard: SparseShard, first: int, stop: int) -> None:
    shard.write(first, stop, CONTENT[OFFSETS[first] : OFFSETS[stop]])


def test_what_was_written_is_there_for_everybody(path: Path) -> None:
    reader, writer = opened(path), opened(path)
    assert reader is not None
    assert writer is not None
    assert [reader.read(position) for position in range(SAMPLES)] == [None] * SAMPLES
    put(writer, 1, 3)
    put(writer, 4, 5)
    for shard in (reader, writer, opened(path)):
        assert shard is not None
        assert shard.present().tolist() == [False, True, True, False, True]
        expected = [CONTENT[OFFSETS[i] : OFFSETS[i + 1]] if i in (1, 2, 4) else None for i in range(SAMPLES)]
        assert [shard.read(position) for position in range(SAMPLES)] == expected


def test_what_is_present_is_written_as_documented(tmp_path: Path) -> None:
    """A later version reads what this one left in a cache."""
    path, head = str(tmp_path / "x"), HEAD + b"xy"  # of which a whole number of words is taken up
    shard = SparseShard.create(path, head, size=SIZE, samples=SAMPLES, parse=lambda data: parse(data[:-2]))
    put(shard, 1, 4)
    begin = struct.pack("<8sQQII", b"TEDSPRS1", SIZE, SAMPLES, len(head), zlib.crc32(head)) + head + bytes(2)
    checksums = [0, 1, *(zlib.crc32(CONTENT[OFFSETS[i] : OFFSETS[i + 1]]) for i in (2, 3)), 0]  # 1: the empty one
    assert Path(f"{path}.present").read_bytes() == begin + np.array(checksums, "<u4").tobytes()


def test_holes_take_no_space(path: Path) -> None:
    shard = opened(path)
    assert shard is not None
    put(shard, 4, 5)
    status = os.stat(f"{path}.sparse")
    assert status.st_size == SIZE
    assert 512 * status.st_blocks <= 2 * 4096


def test_a_sample_that_a_crash_took_is_absent(path: Path) -> None:
    shard = opened(path)
    assert shard is not None
    put(shard, 0, SAMPLES)
    with open(f"{path}.sparse", "r+b") as file:  # said to be present, never flushed
        file.seek(9000 + 4096)
        file.write(bytes(4096))
    for again in (shard, opened(path)):
        assert again is not None
        assert again.read(3) is None
        assert again.present().tolist() == [True, True, True, False, True]  # to be fetched again
        assert again.read(0) == CONTENT[100:5100]


@pytest.mark.parametrize(
    "damage", ["no data", "no list", "short data", "short list", "empty list", "head", "magic", "other shard"]
)
def test_files_that_are_not_whole_are_not_used(path: Path, damage: str) -> None:
    data, present = Path(f"{path}.sparse"), Path(f"{path}.present")
    size = SIZE
    if damage == "no data":
        data.unlink()
    elif damage == "no list":
        present.unlink()
    elif damage == "short data":
        os.truncate(data, SIZE - 1)
    elif damage == "short list":
        os.truncate(present, present.stat().st_size - 1)
    elif damage == "empty list":
        present.write_bytes(b"")
    elif damage == "other shard":
        size = SIZE + 1
    else:
        contents = bytearray(present.read_bytes())
        contents[0 if damage == "magic" else 40] ^= 1
        present.write_bytes(contents)
    assert opened(path, size=size) is None


def test_a_full_disk_is_an_error_and_leaves_no_wrong_sample(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard = opened(path)
    assert shard is not None
    real = os.pwrite
    room = 6000

    def pwrite(file: int, data: bytes, offset: int) -> int:
        nonlocal room
        if room == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = real(file, data[:room], offset)
        room -= written
        return written

    monkeypatch.setattr(os, "pwrite", pwrite)
    with pytest.raises(OSError, match="No space left"):
        put(shard, 0, 3)
    monkeypatch.undo()
    again = opened(path)
    assert again is not None
    assert again.present().tolist() == [False] * SAMPLES


def test_a_head_that_is_none_makes_no_files(tmp_path: Path) -> None:
    def refuse(head: bytes) -> NDArray[np.int64]:
        raise ValueError("no offsets")

    with pytest.raises(ValueError, match="no offsets"):
        SparseShard.create(str(tmp_path / "x"), b"abc", size=3, samples=1, parse=refuse)
    assert not list(tmp_path.iterdir())
