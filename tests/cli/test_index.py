"""ted-stream index: what it writes, where, and what it refuses."""

import gzip
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.filesize import decimal
from streaming import StreamingDataset
from typer.testing import CliRunner

from ted_stream import PrunedStreamingDataset
from ted_stream.cli.commands import app
from ted_stream.reading import tar_index
from ted_stream.reading.tar_index import index_tars

BUCKET = "training"  # of the fixture
PER_SHARD = 5


def write_tar(path: Path, files: list[tuple[str, bytes]], **attributes: Any) -> Path:
    """A tar of files; attributes are set on the last member."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for at, (name, data) in enumerate(files):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            for attribute, value in attributes.items() if at == len(files) - 1 else ():
                setattr(member, attribute, value)
            tar.addfile(member, io.BytesIO(data))
    return path


def sample(index: int) -> list[tuple[str, bytes]]:
    return [(f"{index}.txt", f"text {index}".encode()), (f"{index}.cls", str(index).encode())]


def write_shards(folder: Path, shards: int = 3) -> str:
    for shard in range(shards):
        files = [file for at in range(PER_SHARD) for file in sample(shard * PER_SHARD + at)]
        write_tar(folder / f"x-{shard}.tar", files)
    return f"{folder}/x-{{0..{shards - 1}}}.tar"


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["index", *map(str, arguments)])


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def classes(dataset: StreamingDataset) -> list[int]:
    return [dataset[at]["cls"] for at in range(dataset.num_samples)]


@pytest.mark.long
def test_index_beside_the_shards(tmp_path: Path) -> None:
    pattern = write_shards(tmp_path)
    result = run(pattern, "--workers", 2)
    assert result.exit_code == 0, result.output
    tars = {f"x-{shard}.tar" for shard in range(3)}
    size = decimal(sum((tmp_path / name).stat().st_size for name in tars))
    assert f"15 samples in 3 shards, {size}; index in {tmp_path}" in result.output
    assert names(tmp_path) == {*tars, *(f"{tar}.offsets" for tar in tars), "index.json", "origins.parquet"}
    assert classes(StreamingDataset(local=str(tmp_path), batch_size=1)) == list(range(15))
    index = json.loads((tmp_path / "index.json").read_text())
    assert index["version"] == 2
    for shard in index["shards"]:
        for file in (shard["raw_data"], shard["raw_meta"]):
            assert file["bytes"] == (tmp_path / file["basename"]).stat().st_size
        assert (shard["samples"], shard["extensions"]) == (PER_SHARD, ["cls", "txt"])
    # Again, alone, and with more shards: all the same files.
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert run(pattern, "--workers", 1).exit_code == 0
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert run(write_shards(tmp_path, 4), "--workers", 1).exit_code == 0
    assert classes(StreamingDataset(local=str(tmp_path), batch_size=1)) == list(range(20))


def test_one_tar_and_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shards(tmp_path, 1)
    monkeypatch.chdir(tmp_path)
    told = []
    done = index_tars("x-0.tar", workers=8, progress=lambda *numbers: told.append(numbers))
    assert (done.folder, done.shards, done.samples, done.bytes) == (".", 1, 5, (tmp_path / "x-0.tar").stat().st_size)
    assert told == [(0, 1), (1, 1)]
    assert (tmp_path / "index.json").exists()


@pytest.mark.long
def test_index_of_a_bucket(s3: Any, tmp_path: Path) -> None:
    pattern = write_shards(tmp_path / "tars", 2)
    for path in (tmp_path / "tars").iterdir():
        s3.upload_file(str(path), BUCKET, f"corpus/{path.name}")
    remote = f"s3://{BUCKET}/corpus"
    # Apart from a bucket that may not be written to, then in it.
    out = tmp_path / "index"
    result = run(pattern.replace(f"{tmp_path}/tars", remote), "--out", out, "--workers", 1)
    assert result.exit_code == 0, result.output
    assert names(out) == {"x-0.tar.offsets", "x-1.tar.offsets", "index.json", "origins.parquet"}
    assert s3.list_objects_v2(Bucket=BUCKET)["KeyCount"] == 2
    assert classes(PrunedStreamingDataset(local=str(out), remote=remote, batch_size=1)) == list(range(10))
    for _ in range(2):
        assert run(pattern.replace(f"{tmp_path}/tars", remote), "--workers", 1).exit_code == 0
    assert s3.list_objects_v2(Bucket=BUCKET)["KeyCount"] == 6
    cache = str(tmp_path / "cache")
    assert classes(PrunedStreamingDataset(local=cache, remote=remote, batch_size=1)) == list(range(10))
    missing = run(f"{remote}/x-{{0..2}}.tar", "--workers", 1)
    assert missing.exit_code == 1
    assert f"Error: The shard {remote}/x-2.tar cannot be downloaded" in missing.output


def test_an_interrupted_index_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pattern = write_shards(tmp_path)
    write = tar_index.write_bytes
    written = []

    def stop(path: str, data: bytes) -> None:
        if len(written) == stop_at:
            raise KeyboardInterrupt
        write(path, data)
        written.append(Path(path).name)

    monkeypatch.setattr(tar_index, "write_bytes", stop)
    for count in range(4):
        stop_at = count
        written.clear()
        with pytest.raises(KeyboardInterrupt):
            index_tars(pattern)
        assert not (tmp_path / "index.json").exists()
    stop_at = 4
    written.clear()
    index_tars(pattern)
    assert written == [*(f"x-{shard}.tar.offsets" for shard in range(3)), "index.json"]  # all by this process


def test_another_index_is_not_overwritten(tmp_path: Path) -> None:
    write_shards(tmp_path, 3)
    first, rest = f"{tmp_path}/x-0.tar", f"{tmp_path}/x-{{1..2}}.tar"
    index_tars(first)
    kept = (tmp_path / "index.json").read_bytes()
    with pytest.raises(ValueError, match=r"index of 1 shards, 1 of which you did not name, x-0\.tar.*--out"):
        index_tars(rest)
    assert (tmp_path / "index.json").read_bytes() == kept
    index_tars(rest, str(tmp_path / "other"))
    (tmp_path / "index.json").write_text("{}")  # of nothing that could be read
    index_tars(rest)


A, B = sample(1), sample(2)
GOOD = [*A, *B]


def truncated(path: Path, cut: int) -> Path:
    path.write_bytes(path.read_bytes()[:cut])
    return path


def packed(path: Path, function: Callable[[bytes], bytes]) -> Path:
    path.write_bytes(function(path.read_bytes()))
    return path


def bad_tars(folder: Path) -> dict[str, tuple[Path, str]]:
    """Tars that are refused, and what the message must say."""

    def tar(name: str, files: list[tuple[str, bytes]], **attributes: Any) -> Path:
        return write_tar(folder / f"{name}.tar", files, **attributes)

    big = [("1.bin", b"x" * 40_000)]
    with_globals = folder / "globals.tar"
    with tarfile.open(with_globals, "w", pax_headers={"comment": "all"}) as file:
        file.addfile(tarfile.TarInfo("1.txt"))
    negative = tarfile.TarInfo("2.txt")
    negative.size = -1024
    end = len(GOOD) * 1024
    return {
        "gzip": (packed(tar("gzip", GOOD), gzip.compress), r"is compressed \(gzip\).*plain tar"),
        "nonsense": (packed(tar("nonsense", GOOD), lambda data: b"no" * 5000), "is no whole tar"),
        "nothing": (truncated(tar("nothing", GOOD), 0), "is no whole tar"),
        "in a header": (truncated(tar("header", GOOD), 1024 + 100), r"goes on after byte 1024.*header is damaged"),
        "in a file": (truncated(tar("file", big), 9000), r"is no whole tar: unexpected end of data"),
        "between files": (truncated(tar("between", GOOD), 2048), r"ends at byte 2048 .*truncated"),
        "damaged header": (
            packed(tar("damaged", GOOD), lambda data: data[:2048] + b"\xff" + data[2049:]),
            r"goes on after byte 2048.*header is damaged",
        ),
        "appended": (packed(tar("appended", GOOD), lambda data: data * 2), rf"goes on after byte {end}.*appended"),
        "empty": (tar("empty", []), "holds no samples"),
        "only others": (tar("others", [("README", b"x"), ("__a__/x.txt", b"y")]), "holds no samples"),
        "key again": (tar("again", [*A, *B, ("1.json", b"{}")]), r"key '1' of '1\.json' occurred before"),
        "extension twice": (tar("twice", [*A, ("1.TXT", b"")]), r"'1' has a second \.txt with '1\.TXT'"),
        "lacks one": (tar("lacks", [*A, ("2.txt", b""), *sample(3)]), r"'2' lacks \.cls: it has \.txt"),
        "last lacks one": (tar("last", [*A, ("2.txt", b"")]), r"'2' lacks \.cls"),
        "adds one": (tar("adds", [*A, *B, ("2.json", b"{}")]), r"'2' adds \.json"),
        "reserved": (tar("reserved", [*A, ("1.__bad__", b"1")]), r"'1\.__bad__' is of a form that webdataset keeps"),
        "absolute": (tar("absolute", [*A, ("/etc/2.txt", b"")]), r"'/etc/2\.txt' is absolute"),
        "climbing": (tar("climbing", [*A, ("a/../../2.txt", b"")]), r"'a/\.\./\.\./2\.txt' is absolute or climbs"),
        "link": (tar("link", [*A, ("2.txt", b"")], type=tarfile.SYMTYPE, linkname="1.txt"), "'2.txt' is a link"),
        "hard link": (tar("hard", [*A, ("2.txt", b"")], type=tarfile.LNKTYPE, linkname="1.txt"), "'2.txt' is a link"),
        "device": (tar("device", [*A, ("2.txt", b"")], type=tarfile.CHRTYPE), "'2.txt' is a link, a device"),
        "sparse": (tar("sparse", [*A, ("2.txt", b"")], type=tarfile.GNUTYPE_SPARSE), "'2.txt' is a .* sparse file"),
        "negative size": (
            packed(tar("negative", GOOD), lambda data: data[:2048] + negative.tobuf(tarfile.GNU_FORMAT) + data[2560:]),
            "'2.txt' is .* damaged",
        ),
        "global header": (with_globals, r"global header before '1\.txt' \(comment\)"),
    }


@pytest.mark.parametrize("place", ["alone", "behind a good one"])
def test_bad_tars_are_refused_by_name(tmp_path: Path, place: str) -> None:
    good = write_tar(tmp_path / "tars" / "good.tar", GOOD)
    for fault, (path, message) in bad_tars(tmp_path / "tars").items():
        out = tmp_path / fault
        pattern = str(path) if place == "alone" else f"{tmp_path}/tars/{{{good.stem},{path.stem}}}.tar"
        with pytest.raises(ValueError, match=message) as caught:
            index_tars(pattern, str(out))
        assert str(path) in str(caught.value)
        assert not (out / "index.json").exists()


def test_the_first_sample_of_the_dataset_counts(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", GOOD)
    write_tar(tmp_path / "1.tar", [("3.txt", b""), ("4.txt", b"")])
    with pytest.raises(
        ValueError, match=r"1\.tar: the sample '3' lacks \.cls.*first sample of the dataset \.cls, \.txt"
    ):
        index_tars(f"{tmp_path}/{{0..1}}.tar")


def test_refused_patterns(tmp_path: Path) -> None:
    write_shards(tmp_path / "a", 1)
    write_shards(tmp_path / "b", 1)
    for pattern, message in (
        (f"{tmp_path}/{{a,b}}/x-0.tar", "names shards in 2 folders"),
        (f"{tmp_path}/a/x-{{0,0}}.tar", r"x-0\.tar 2 times"),
        (f"{tmp_path}/a/x-{{0..3}}.tar", r"3 of the 4 shards .* do not exist, the first .*x-1\.tar"),
        (f"{tmp_path}/none.tar", r"1 of the 1 shards"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            index_tars(pattern)
    shown = run(f"{tmp_path}/none.tar")
    assert shown.exit_code == 1
    assert "Error: 1 of the 1 shards" in shown.output
    assert "Usage" in run("--help").output
