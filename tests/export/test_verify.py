"""A manifest against a dataset: each check fails for what it is there for, and for nothing else."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from run_folders import write_run
from streaming import MDSWriter
from typer.testing import CliRunner
from webdataset.writer import TarWriter

from ted_stream import PrunedStreamingDataset
from ted_stream.cli.commands import app
from ted_stream.export import Selection, export_run, manifest, verify
from ted_stream.export.rows import RowsDigest
from ted_stream.export.stream_index import layout_of_index, read_index
from ted_stream.reading.tar_index import index_tars
from ted_stream.skip_list import DatasetLayout

N = 90
KEEP = np.random.default_rng(0).random(N) < 0.5
WHOLE = {"manifest": True, "fingerprint": True, "samples": True, "bytes": True}


def write_shards(folder: Path, *, compression: str | None = None, hashes: list[str] | None = None) -> str:
    """Three shards."""
    options: dict[str, Any] = {"compression": compression, "hashes": hashes}
    with MDSWriter(out=str(folder), columns={"x": "bytes"}, size_limit=30 * 1008 + 200, **options) as writer:
        for at in range(N):
            writer.write({"x": bytes([at]) * 1000})
    assert len(read_index(folder)["shards"]) == 3
    return str(folder)


@pytest.fixture
def hashed(tmp_path: Path) -> str:
    return write_shards(tmp_path / "data", hashes=["sha1", "sha256"])


def manifest_of(folders: list[str], path: Path, keep: Any = KEEP) -> Path:
    """Of a run that read these streams."""
    streams = [PrunedStreamingDataset(local=folder, batch_size=8).layout.streams[0] for folder in folders]
    write_run(path.with_suffix(".run"), DatasetLayout(streams=tuple(streams)), [keep])
    export_run(path.with_suffix(".run"), path, overwrite=True)
    return path


def found(path: Any, dataset: Any, **options: Any) -> dict[str, bool | None]:
    return {check.name: check.ok for check in verify(path, dataset, **options)}


def change(path: str | Path, at: int) -> None:
    data = bytearray(Path(path).read_bytes())
    data[at] ^= 1
    Path(path).write_bytes(data)


@pytest.mark.parametrize("compression", [None, "zstd"])
def test_a_dataset_with_hashes(compression: str | None, tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "data", compression=compression, hashes=["sha1"])
    kept = manifest_of([folder], tmp_path / "kept")
    assert found(kept, folder, shards=3) == WHOLE
    (bytes_,) = [check.told for check in verify(kept, folder, shards=2) if check.name == "bytes"]
    assert "2 of 3 shards with kept samples have the hashes of the index" in bytes_
    # A byte in the middle of a shard, which its index does not know.
    shard = sorted(Path(folder).glob("shard.00001.mds*"))[0]
    change(shard, shard.stat().st_size // 3)
    assert found(kept, folder, shards=3) == {**WHOLE, "bytes": False}
    assert found(kept, folder, shards=0) == {**WHOLE, "bytes": None}
    shard.unlink()
    (told,) = [check.told for check in verify(kept, folder, shards=0) if not check.ok]
    assert "1 of 3 shards with kept samples are missing, " in told
    assert shard.name in told


def test_only_shards_with_kept_samples_are_needed(hashed: str, tmp_path: Path) -> None:
    last = read_index(hashed)["shards"][2]["samples"]
    kept = manifest_of([hashed], tmp_path / "kept", np.arange(N) >= N - last)
    for number in (0, 1):
        Path(hashed, f"shard.0000{number}.mds").unlink()
    assert found(kept, hashed) == WHOLE


def test_a_changed_manifest(hashed: str, tmp_path: Path) -> None:
    kept = manifest_of([hashed], tmp_path / "kept")
    change(kept, 50)
    assert found(kept, hashed) == {"manifest": False}
    kept.write_bytes(b"no manifest")
    assert found(kept, hashed) == {"manifest": False}


def test_another_dataset(hashed: str, tmp_path: Path, make_mds: Callable[..., str]) -> None:
    kept = manifest_of([hashed], tmp_path / "kept")
    failed = {"manifest": True, "fingerprint": False}
    assert found(kept, make_mds(N)) == failed
    assert found(kept, [hashed, make_mds(N)]) == failed
    index = json.loads(Path(hashed, "index.json").read_text())
    index["shards"][1]["raw_data"]["hashes"]["sha1"] = "0" * 40
    Path(hashed, "index.json").write_text(json.dumps(index))
    (told,) = [check.told for check in verify(kept, hashed) if not check.ok]
    assert "the same names, sizes and counts of shards, but other content" in told


@pytest.mark.parametrize("compression", [None, "zstd"])
def test_a_dataset_without_hashes(compression: str | None, tmp_path: Path) -> None:
    """Is known by the first, middle and last bytes of its shards, as runs know it."""
    folder = write_shards(tmp_path / "data", compression=compression)
    kept = manifest_of([folder], tmp_path / "kept")
    assert found(kept, folder) == {**WHOLE, "bytes": None}
    change(sorted(Path(folder).glob("shard.00001.mds*"))[0], 20)
    assert found(kept, folder) == {"manifest": True, "fingerprint": False}


def test_content_that_is_unknown_to_one_side(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "data")
    write_run(tmp_path / "run", DatasetLayout(streams=(layout_of_index(read_index(folder)),)), [KEEP])
    export_run(tmp_path / "run", tmp_path / "kept")
    assert found(tmp_path / "kept", folder) == {**WHOLE, "fingerprint": None, "bytes": None}
    kept = manifest_of([folder], tmp_path / "known")
    for shard in Path(folder).glob("*.mds"):
        shard.unlink()
    assert found(kept, folder) == {**WHOLE, "fingerprint": None, "bytes": False}


def test_streams_in_any_order(tmp_path: Path) -> None:
    folders = [write_shards(tmp_path / "a", hashes=["sha1"]), str(tmp_path / "b")]
    columns = {"x": "bytes"}
    with MDSWriter(out=folders[1], columns=columns, hashes=["sha1"]) as writer:
        for at in range(20):
            writer.write({"x": bytes([at])})
    kept = manifest_of(folders, tmp_path / "kept", np.random.default_rng(0).random(N + 20) < 0.5)
    assert found(kept, folders) == found(kept, folders[::-1]) == WHOLE
    assert found(kept, folders[0]) == {"manifest": True, "fingerprint": False}


def test_tars(tmp_path: Path) -> None:
    for shard in range(2):
        with TarWriter(f"{tmp_path}/x-{shard}.tar") as writer:
            for at in range(30):
                writer.write({"__key__": f"{shard}{at:02}", "txt": f"sample {at}" * 200})
    index_tars(f"{tmp_path}/x-{{0..1}}.tar")
    kept = manifest_of([str(tmp_path)], tmp_path / "kept", np.arange(60) % 3 > 0)
    assert found(kept, tmp_path) == {**WHOLE, "bytes": None}, "digests of some samples tell of these alone"
    change(tmp_path / "x-1.tar", 520)
    assert found(kept, tmp_path) == {**WHOLE, "bytes": False}


@pytest.mark.long
def test_a_dataset_in_an_object_store(s3: Any, hashed: str, tmp_path: Path) -> None:
    kept = manifest_of([hashed], tmp_path / "kept")
    s3.upload_file(str(kept), "training", "kept.parquet")
    for path in Path(hashed).iterdir():
        s3.upload_file(str(path), "training", f"data/train/{path.name}")
    assert found("s3://training/kept.parquet", "s3://training/data", shards=3) == WHOLE
    change(Path(hashed, "shard.00002.mds"), 3000)
    s3.upload_file(f"{hashed}/shard.00002.mds", "training", "data/train/shard.00002.mds")
    assert found(kept, "s3://training/data", shards=3) == {**WHOLE, "bytes": False}
    s3.delete_object(Bucket="training", Key="data/train/shard.00002.mds")
    assert found(kept, "s3://training/data", shards=3) == {**WHOLE, "bytes": False}


def rewritten(path: Path, column: str, turn: Callable[[list[Any]], list[Any]]) -> None:
    """With other values, and a digest that vouches for them."""
    with manifest.open_manifest(path) as before:
        table = pa.Table.from_batches(list(before.batches()))
        metadata = dict(before._metadata)
    at = table.schema.get_field_index(column)
    values = pa.array(turn(table[column].to_pylist()), table.schema.field(column).type)
    (batch,) = table.set_column(at, table.schema.field(column), values).to_batches()
    digest = RowsDigest()
    digest.update(batch)
    words = {**metadata, "digest": digest.hexdigest(metadata)}
    named = {f"ted_stream.manifest.{name}": text for name, text in words.items()}
    pq.write_table(pa.Table.from_batches([batch]).replace_schema_metadata(named), path)


@pytest.mark.parametrize(
    ("column", "turn", "words"),
    [
        ("position", lambda values: [values[1], values[0], *values[2:]], "rows from sample 0 on are at other places"),
        ("shard", lambda values: [values[-1], *values[1:]], "rows from sample 0 on are at other places"),
        ("stream", lambda values: ["other", *values[1:]], "rows from sample 0 on are at other places"),
        ("sample_id", lambda values: [values[1], values[0], *values[2:]], "sample ids are not ascending below 90"),
        ("sample_id", lambda values: [*values[:-1], N], "sample ids are not ascending below 90"),
        ("kept", lambda values: [False, *values[1:]], "rows are kept, the manifest says"),
    ],
)
def test_rows_that_do_not_fit_the_dataset(
    column: str, turn: Callable[[list[Any]], list[Any]], words: str, hashed: str, tmp_path: Path
) -> None:
    kept = manifest_of([hashed], tmp_path / "kept", np.arange(N) % 2 == 0)
    rewritten(kept, column, lambda values: values)
    assert found(kept, hashed) == WHOLE
    rewritten(kept, column, turn)
    (told,) = [check.told for check in verify(kept, hashed) if not check.ok]
    assert words in told


def test_the_command(hashed: str, tmp_path: Path) -> None:
    kept = manifest_of([hashed], tmp_path / "kept")
    done = CliRunner().invoke(app, ["verify", str(kept), hashed])
    assert (done.exit_code, [line.split(":")[0] for line in done.output.splitlines()]) == (
        0,
        ["ok      manifest", "ok      fingerprint", "ok      samples", "ok      bytes"],
    )
    change(Path(hashed, "shard.00000.mds"), 3000)
    done = CliRunner().invoke(app, ["verify", str(kept), hashed])
    assert done.exit_code == 1
    assert done.output.splitlines()[-1].startswith("FAILED  bytes: ")
    assert "copy it again" in done.output
    done = CliRunner().invoke(app, ["verify", str(kept), str(tmp_path / "nothing")])
    assert done.exit_code == 1
    assert "holds neither index.json nor train/index.json" in done.output
    done = CliRunner().invoke(app, ["verify", str(tmp_path / "none"), hashed])
    assert done.exit_code == 1
    assert done.output.startswith("Error: There is no file")


def test_manifests_of_several_epochs_are_verified_too(hashed: str, tmp_path: Path) -> None:
    manifest_of([hashed], tmp_path / "kept")
    shutil.rmtree(tmp_path / "kept.run")
    layout = PrunedStreamingDataset(local=hashed, batch_size=8).layout
    write_run(tmp_path / "run", layout, [KEEP, ~KEEP, KEEP])
    export_run(tmp_path / "run", tmp_path / "some", selection=Selection(min_epochs=2), all_samples=True)
    assert found(tmp_path / "some", hashed) == WHOLE
