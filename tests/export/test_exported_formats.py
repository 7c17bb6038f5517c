"""Every format, read back by its own ecosystem's reader: exactly the samples that the skip-list keeps."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, BinaryIO

import datasets
import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from loop_runs import METHODS, train
from run_folders import kept_by_list, layout_of, random_masks, write_run
from streaming import StreamingDataset
from webdataset.compat import WebDataset
from webdataset.writer import TarWriter

from ted_stream import PrunedStreamingDataset
from ted_stream.cli.export import To
from ted_stream.export import (
    COPIES,
    FORMATS,
    ManifestError,
    Selection,
    export_run,
    open_manifest,
    origins,
    write_origins,
)
from ted_stream.export.formats import Format, Task
from ted_stream.export.stream_index import layout_of_index, read_index
from ted_stream.reading.tar_index import index_tars
from ted_stream.skip_list import DatasetLayout

N, EPOCHS = 120, 4
MASKS = random_masks(N, EPOCHS)
SCORES = np.random.default_rng(1).normal(size=N).astype(np.float32)
SCORES[[3, 70]] = np.nan
WEIGHTS = [None, *(np.random.default_rng(e).random(int(MASKS[e].sum())).astype(np.float32) + 1 for e in (1, 2, 3))]
COLUMNS = ["sample_id", "stream", "shard", "position", "file", "key", "label", "score", "kept", "times_kept", "weight"]


@pytest.fixture(scope="module")
def data(make_mds: Callable[..., str]) -> str:
    """Three shards of samples that each were a file of its own."""
    folder = make_mds(N)
    write_origins(folder, ((f"img/{at}.png", None, at % 3) for at in range(N)), source="/corpus")
    return folder


@pytest.fixture(scope="module")
def run(data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    write_run(folder, PrunedStreamingDataset(local=data, batch_size=8).layout, MASKS, scores=SCORES, weights=WEIGHTS)
    return folder


def expected_rows(run: Path, epoch: int = 3) -> list[dict[str, Any]]:
    """What a manifest says of the samples that an epoch kept."""
    path, rows, weights = run / f"skip_lists/ep000{epoch}.parquet", [], WEIGHTS[epoch]
    shards = pq.read_table(path, columns=["shard", "samples"]).to_pydict()
    first = dict(zip(shards["shard"], np.cumsum([0, *shards["samples"]]).tolist(), strict=False))
    for at, (stream, shard, position) in enumerate(kept_by_list(path)):
        sample = first[shard] + position
        rows.append(
            {
                **{"sample_id": sample, "stream": stream, "shard": shard, "position": position},
                **{"file": f"img/{sample}.png", "key": None, "label": sample % 3},
                "score": None if np.isnan(SCORES[sample]) else float(SCORES[sample]),
                "kept": True,
                "times_kept": sum(int(mask[sample]) for mask in MASKS),
                "weight": 1.0 if weights is None else float(weights[at]),
            }
        )
    return rows


def plain(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows as any reader has them: numbers as Python's, float32 numbers rounded to such, null for NaN."""

    def value(of: Any) -> Any:
        of = of.item() if isinstance(of, np.generic) else of
        if isinstance(of, float):
            return None if np.isnan(of) else float(np.float32(of))
        return None if of is pd.NA else of

    return [{name: value(row[name]) for name in COLUMNS} for row in rows]


def of_frame(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return frame.astype(object).where(frame.notna(), None).to_dict("records")


def of_duckdb(source: str) -> list[dict[str, Any]]:
    with duckdb.connect() as connection:
        found = connection.execute(f"select * from {source}")
        names = [column[0] for column in found.description or ()]
        return [dict(zip(names, row, strict=True)) for row in found.fetchall()]


READERS: dict[str, dict[str, Callable[[str], Any]]] = {
    "parquet": {
        "pyarrow": lambda path: pq.read_table(path).to_pylist(),
        "pandas": lambda path: of_frame(pd.read_parquet(path)),
        "duckdb": lambda path: of_duckdb(f"read_parquet('{path}')"),
        "datasets": lambda path: list(datasets.Dataset.from_parquet(path, cache_dir=f"{path}.cache")),
    },
    "csv": {
        "pandas": lambda path: of_frame(pd.read_csv(path, dtype={"stream": str, "key": str})),
        "duckdb": lambda path: of_duckdb(f"read_csv('{path}', types={{'stream': 'VARCHAR', 'key': 'VARCHAR'}})"),
    },
    "jsonl": {
        "json": lambda path: [json.loads(line) for line in Path(path).read_text().splitlines()],
        "pandas": lambda path: of_frame(pd.read_json(path, lines=True, dtype={"stream": str, "key": str})),
        "datasets": lambda path: list(datasets.Dataset.from_json(path, cache_dir=f"{path}.cache")),
    },
}


@pytest.mark.parametrize(("to", "reader"), [(to, name) for to, readers in READERS.items() for name in readers])
def test_the_rows_of_a_manifest(to: str, reader: str, run: Path, data: str, tmp_path: Path) -> None:
    path = str(tmp_path / f"kept.{to}")
    done = export_run(run, path, to=to, dataset=data)
    assert plain(READERS[to][reader](path)) == plain(expected_rows(run))
    assert (done.kept, done.samples, done.epoch, done.notes) == (int(MASKS[3].sum()), N, 3, ())


@pytest.mark.parametrize("to", ["parquet", "csv", "jsonl"])
def test_all_samples(to: str, run: Path, data: str, tmp_path: Path) -> None:
    path = str(tmp_path / "all")
    export_run(run, path, to=to, dataset=data, selection=Selection(epoch=1), all_samples=True)
    rows = plain(next(iter(READERS[to].values()))(path))
    assert [row["sample_id"] for row in rows] == list(range(N))
    assert [row for row in rows if row["kept"]] == plain(expected_rows(run, 1))
    assert all(row["weight"] is None for row in rows if not row["kept"])
    assert [row["times_kept"] for row in rows] == np.sum(MASKS, axis=0).tolist()


@pytest.mark.parametrize("chunk", [7, 64])
def test_however_many_rows_are_held_at_once(
    chunk: int, run: Path, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_run(run, tmp_path / "whole", dataset=data)
    monkeypatch.setattr(origins, "CHUNK", chunk)
    stages: list[tuple[str, int, int]] = []
    export_run(run, tmp_path / "parts", dataset=data, progress=lambda *told: stages.append(told))
    assert pq.ParquetFile(tmp_path / "parts").num_row_groups == -(-N // chunk)
    assert pq.read_table(tmp_path / "parts").equals(pq.read_table(tmp_path / "whole"))
    with open_manifest(tmp_path / "parts") as parts, open_manifest(tmp_path / "whole") as whole:
        assert parts.digest == whole.digest
        parts.check()
    assert [done for stage, done, _ in stages if stage == "rows"] == [*range(0, N, chunk), N]


def test_what_a_manifest_says_of_itself(run: Path, data: str, tmp_path: Path) -> None:
    layout = PrunedStreamingDataset(local=data, batch_size=8).layout
    export_run(run, tmp_path / "one", selection=Selection(epoch=2))
    with open_manifest(tmp_path / "one") as found:
        assert (found.fingerprint, found.streams) == (
            layout.fingerprint,
            tuple(zip(layout.stream_keys, layout.shape_keys, strict=True)),
        )
        assert (found.run, found.method, found.settings, found.epochs) == ("r", "TED", "TED(0.5)", EPOCHS)
        assert (found.epoch, found.selection, found.scored_after) == (2, Selection(epoch=2), EPOCHS - 1)
        assert (found.samples, found.kept, found.rows) == (N, MASKS[2].sum(), MASKS[2].sum())
        assert found.skip_list == json.loads((run / "run.json").read_text())["epochs"][2]["digest"]
    export_run(run, tmp_path / "several", selection=Selection(min_epochs=3), all_samples=True)
    with open_manifest(tmp_path / "several") as found:
        assert (found.epoch, found.skip_list, found.rows) == (None, None, N)
        assert found.selection == Selection(min_epochs=3)
    assert pq.read_table(tmp_path / "several")["weight"].null_count == N


@pytest.mark.parametrize("name", ["score", "file", "kept", "weight"])
def test_a_manifest_that_was_changed(name: str, run: Path, data: str, tmp_path: Path) -> None:
    export_run(run, tmp_path / "kept", dataset=data)
    table = pq.read_table(tmp_path / "kept")
    at, field = table.schema.get_field_index(name), table.schema.field(name)
    turned = table.column(name).to_pylist()
    turned[0], turned[1] = (False, True) if name == "kept" else (turned[1], turned[0])
    changed = table.set_column(at, field, pa.array(turned, field.type))
    pq.write_table(changed, tmp_path / "kept")
    with open_manifest(tmp_path / "kept") as found, pytest.raises(ManifestError, match="the file was changed"):
        found.check()


def test_what_is_no_manifest(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "kept"
    for data, words in ((b"", "no whole Parquet file"), (b"PAR1 and more", "no whole Parquet file")):
        path.write_bytes(data)
        with pytest.raises(ManifestError, match=f"manifest '.*kept': this is {words}"), open_manifest(path):
            pass
    with pytest.raises(ManifestError, match="this is a skip-list, no manifest"), open_manifest(
        run / "skip_lists/ep0001.parquet"
    ):  # fmt: skip
        pass
    export_run(run, path, overwrite=True)
    table = pq.read_table(path)
    for change, words in (
        ({b"ted_stream.manifest.format_version": b"9"}, "format version 9 found, 1 supported"),
        ({b"ted_stream.manifest.rows": b"9"}, "rows found, the file says 9"),
        ({b"ted_stream.manifest.samples": b"many"}, "the metadata is damaged"),
    ):
        pq.write_table(table.replace_schema_metadata({**table.schema.metadata, **change}), path)
        with pytest.raises(ManifestError, match=words), open_manifest(path):
            pass


def test_indices_that_datasets_selects_by(run: Path, tmp_path: Path) -> None:
    export_run(run, tmp_path / "kept.npy", to="hf-indices", selection=Selection(min_epochs=3))
    rows = datasets.Dataset.from_dict({"id": list(range(N))}).select(np.load(tmp_path / "kept.npy"))
    assert rows["id"][:] == [at for at in range(N) if sum(mask[at] for mask in MASKS) >= 3]


def test_names_that_are_no_text_are_unknown(make_mds: Callable[..., str]) -> None:
    folder = make_mds(4)
    write_origins(folder, ((name, None, 1) for name in ("a", "b\udcff", "größe", None)))
    rows = pq.read_table(f"{folder}/origins.parquet").to_pylist()
    assert [(row["file"], row["label"]) for row in rows] == [("a", 1), (None, 1), ("größe", 1), (None, 1)]


def test_file_names(run: Path, data: str, tmp_path: Path) -> None:
    export_run(run, tmp_path / "kept.txt", to="files", dataset=data)
    assert (tmp_path / "kept.txt").read_text().splitlines() == [row["file"] for row in expected_rows(run)]


# WebDataset's tars, and DataComp's uids


def write_tars(folder: Path, keys: list[str]) -> str:
    for shard in range(3):
        with TarWriter(f"{folder}/x-{shard}.tar") as writer:
            for at, key in enumerate(keys[10 * shard : 10 * shard + 10]):
                writer.write({"__key__": key, "txt": f"sample {10 * shard + at}"})
    index_tars(f"{folder}/x-{{0..2}}.tar")
    return str(folder)


UIDS = [f"{at * 0x9E3779B97F4A7C15F39CC0605CEDC835 % 2**128:032x}" for at in range(1, 31)]
KEEP = np.random.default_rng(5).random(30) < 0.5


def run_over(folder: str, keep: Any = KEEP) -> Path:
    run = Path(f"{folder}-run")
    write_run(run, PrunedStreamingDataset(local=folder, batch_size=8).layout, [keep])
    return run


def test_keys_of_webdataset(tmp_path: Path) -> None:
    (tmp_path / "tars").mkdir()
    folder = write_tars(tmp_path / "tars", [f"{'ab'[at % 2]}/{at:03}" for at in range(30)])
    run = run_over(folder)
    done = export_run(run, tmp_path / "keys.txt", to="webdataset-keys", dataset=folder)
    keys = set((tmp_path / "keys.txt").read_text().splitlines())
    samples: Any = WebDataset(f"{folder}/x-{{0..2}}.tar", shardshuffle=False).select(lambda s: s["__key__"] in keys)
    kept = [sample["txt"].decode() for sample in samples]
    positions = [10 * int(shard[2]) + at for _, shard, at in kept_by_list(run / "skip_lists/ep0000.parquet")]
    assert kept == [f"sample {at}" for at in positions]
    assert (len(keys), done.kept) == (KEEP.sum(), KEEP.sum())
    export_run(run, tmp_path / "kept.parquet", dataset=folder)
    rows = pq.read_table(tmp_path / "kept.parquet").to_pylist()
    assert [(row["file"], row["key"]) for row in rows] == [
        (f"x-{at // 10}.tar", f"{'ab'[at % 2]}/{at:03}") for at in positions
    ]


def test_uids_of_datacomp(tmp_path: Path) -> None:
    (tmp_path / "tars").mkdir()
    folder = write_tars(tmp_path / "tars", UIDS)
    run = run_over(folder)
    export_run(run, tmp_path / "uids.npy", to="datacomp", dataset=folder)
    uids = np.load(tmp_path / "uids.npy")
    assert uids.dtype == np.dtype("u8,u8")
    positions = [10 * int(shard[2]) + at for _, shard, at in kept_by_list(run / "skip_lists/ep0000.parquet")]
    kept = sorted((int(UIDS[at][:16], 16), int(UIDS[at][16:], 16)) for at in positions)
    assert [tuple(map(int, uid)) for uid in uids] == kept


@pytest.mark.parametrize(
    ("to", "change", "words"),
    [
        ("datacomp", {4: "000000004"}, "sample 4 has the key '000000004', but a DataComp uid has 32 hex digits"),
        ("datacomp", {4: UIDS[4].replace(UIDS[4][0], "g")}, "sample 4 has the key 'g"),
        ("datacomp", {25: UIDS[4]}, "1 times a kept sample and one that is not have the same uid"),
        ("webdataset-keys", {25: UIDS[4]}, "1 times a kept sample and one that is not have the same key"),
        ("files", {}, "takes a file for each sample, .* its origins are keys that are of kind 'webdataset'"),
    ],
)
def test_names_that_would_not_say_which_samples_are_kept(
    to: str, change: dict[int, str], words: str, tmp_path: Path
) -> None:
    (tmp_path / "tars").mkdir()
    folder = write_tars(tmp_path / "tars", [change.get(at, uid) for at, uid in enumerate(UIDS)])
    keep = np.arange(30) < 15
    with pytest.raises(ValueError, match=words):
        export_run(run_over(folder, keep), tmp_path / "out", to=to, dataset=folder)
    assert not (tmp_path / "out").exists()


def test_names_that_both_are_kept_may_be_the_same(tmp_path: Path) -> None:
    (tmp_path / "tars").mkdir()
    folder = write_tars(tmp_path / "tars", [*UIDS[:29], UIDS[4]])
    export_run(run_over(folder, np.arange(30) % 25 == 4), tmp_path / "out", to="datacomp", dataset=folder)
    assert len(np.load(tmp_path / "out")) == 1


# Streaming's index


def test_an_index_without_whole_shards(data: str, tmp_path: Path) -> None:
    layout = PrunedStreamingDataset(local=data, batch_size=8).layout
    first, second, third = (shard.samples for shard in layout.shards)
    keep = (np.arange(N) < first) | (np.arange(N) >= first + second)  # all of the second shard goes
    write_run(tmp_path / "run", layout, [keep])
    (tmp_path / "some").mkdir()
    done = export_run(tmp_path / "run", tmp_path / "some/index.json", to="streaming-index", dataset=data)
    assert done.notes == ("2 of 3 shards have kept samples; the others are left out",)
    subset = StreamingDataset(remote=data, local=str(tmp_path / "some"), batch_size=8)
    assert [subset[at]["id"] for at in range(subset.num_samples)] == np.flatnonzero(keep).tolist()
    assert sorted(path.name for path in (tmp_path / "some").iterdir()) == [
        "index.json",
        "shard.00000.mds",
        "shard.00002.mds",
    ]
    keep[: first - 1] = False
    write_run(tmp_path / "run", layout, [keep])
    done = export_run(tmp_path / "run", tmp_path / "less.json", to="streaming-index", dataset=data)
    assert f"hold {first + third} samples, {first - 1} of which are not kept" in done.notes[1]


def test_a_file_of_the_dataset_is_not_written_over(data: str, run: Path) -> None:
    before = {path.name: path.read_bytes() for path in Path(data).iterdir()}
    for name, to, words in (
        ("shard.00000.mds", "hf-indices", "is a shard of a dataset"),
        ("index.json", "streaming-index", "is the index of the dataset itself"),
    ):
        with pytest.raises(ValueError, match=words):
            export_run(run, f"{data}/{name}", to=to, dataset=data, overwrite=True)
    assert {path.name: path.read_bytes() for path in Path(data).iterdir()} == before


def test_several_streams(make_mds: Callable[..., str], tmp_path: Path) -> None:
    """Named by those that are given, in any order."""
    folders = [make_mds(30, per_shard=20, seed=1), make_mds(50, per_shard=20, seed=2)]
    write_origins(folders[1], ((f"b/{at}", None, None) for at in range(50)))
    layout = DatasetLayout(streams=tuple(layout_of_index(read_index(folder)) for folder in folders))
    keep = np.random.default_rng(0).random(80) < 0.5
    write_run(tmp_path / "run", layout, [keep])
    done = export_run(tmp_path / "run", tmp_path / "kept", dataset=folders[::-1])
    rows = pq.read_table(tmp_path / "kept").to_pylist()
    kept = np.flatnonzero(keep).tolist()
    assert [row["file"] for row in rows] == [None if at < 30 else f"b/{at - 30}" for at in kept]
    assert "samples of 1 streams go by stream, shard and position: " in done.notes[0]
    assert f"{folders[0]} has no origins.parquet" in done.notes[0]
    index = tmp_path / "index.json"
    export_run(tmp_path / "run", index, to="streaming-index", dataset=folders[1])
    assert len(json.loads(index.read_text())["shards"]) == 3
    with pytest.raises(ValueError, match="an index is of one stream, but 2 of the run's 2 streams are given"):
        export_run(tmp_path / "run", index, to="streaming-index", dataset=folders, overwrite=True)
    with pytest.raises(ValueError, match=r"which are not known of stream .*: its dataset is not given: name it with"):
        export_run(tmp_path / "run", tmp_path / "names", to="files", dataset=folders[1])
    other = make_mds(30, per_shard=10, seed=3)
    with pytest.raises(ValueError, match=f"{other} is none of the 2 streams that the run read"):
        export_run(tmp_path / "run", tmp_path / "names", dataset=[other])


# How it is written


@pytest.mark.parametrize("to", ["parquet", "jsonl", "csv", "hf-indices", "streaming-index", "files"])
def test_a_killed_writer_leaves_nothing_under_the_name(to: str, run: Path, data: str, tmp_path: Path) -> None:
    """Killed when all is written but the name."""

    def die(form: Format, file: BinaryIO, task: Task) -> None:
        form.write(file, task)
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)

    path = tmp_path / "out"
    process = get_context("fork").Process(target=export_dying, args=(die, run, path, to, data))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not path.exists()
    (left,) = tmp_path.iterdir()
    assert left.name.endswith(".tmp")
    assert left.stat().st_size > 0
    export_run(run, path, to=to, dataset=data)
    assert path.read_bytes() == left.read_bytes()


def export_dying(die: Any, run: Path, path: Path, to: str, data: str) -> None:
    before, FORMATS[to] = FORMATS[to], replace(FORMATS[to], write=lambda file, task: die(before, file, task))
    export_run(run, path, to=to, dataset=data)


@pytest.mark.parametrize("to", ["parquet", "jsonl", "csv", "files"])
def test_an_interrupted_writer_leaves_what_was_there(to: str, run: Path, data: str, tmp_path: Path) -> None:
    def stop(stage: str, done: int, total: int) -> None:
        if stage == "rows" and done:
            raise KeyboardInterrupt

    (tmp_path / "out").write_text("before")
    with pytest.raises(KeyboardInterrupt):
        export_run(run, tmp_path / "out", to=to, dataset=data, overwrite=True, progress=stop)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out").read_text() == "before"


def test_a_file_that_is_there(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_text("before")
    with pytest.raises(FileExistsError, match=r"out exists; name another file, or pass overwrite=True \(--overwrite\)"):
        export_run(run, path, to="csv")
    assert path.read_text() == "before"
    export_run(run, path, to="csv", overwrite=True)
    assert len(path.read_text().splitlines()) == 1 + MASKS[3].sum()


@pytest.mark.long
def test_to_and_from_an_object_store(s3: Any, data: str, tmp_path: Path) -> None:
    """The run, the dataset with its origins, and what is written."""
    layout = layout_of_index(read_index(data))
    write_run("s3://training/run", DatasetLayout(streams=(layout,)), MASKS, scores=SCORES, weights=WEIGHTS)
    for name in ("index.json", "origins.parquet"):
        s3.upload_file(f"{data}/{name}", "training", f"data/train/{name}")
    export_run("s3://training/run", "s3://training/kept.csv", to="csv", dataset="s3://training/data")
    s3.download_file("training", "kept.csv", str(tmp_path / "kept.csv"))
    write_run(tmp_path / "run", DatasetLayout(streams=(layout,)), MASKS, scores=SCORES, weights=WEIGHTS)
    assert plain(READERS["csv"]["pandas"](str(tmp_path / "kept.csv"))) == plain(expected_rows(tmp_path / "run"))
    with pytest.raises(FileExistsError, match=r"s3://training/kept\.csv exists"):
        export_run("s3://training/run", "s3://training/kept.csv", to="csv")


def test_a_run_at_work(tmp_path: Path) -> None:
    """In every batch from the second epoch on."""
    kept: list[int] = []

    def export(batch: int, state: Any) -> None:
        if batch > 13 and batch % 7 == 0:
            path = tmp_path / f"{batch}.csv"
            done = export_run(tmp_path / "run", path, to="csv", selection=Selection(epoch=0))
            assert not done.finished
            kept.append(len(path.read_text().splitlines()) - 1)
            export_run(tmp_path / "run", tmp_path / f"{batch}.parquet", selection=Selection(min_epochs=1))

    train(METHODS["ted"], str(tmp_path / "run"), after_batch=export)
    assert kept
    assert set(kept) == {101}


# Refusals


def test_what_is_refused(run: Path, data: str, make_mds: Callable[..., str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(
        ValueError, match="there is no format 'xml'; there is parquet, jsonl, csv, datacomp, webdataset"
    ):
        export_run(run, out, to="xml")
    with pytest.raises(ValueError, match=r"csv needs the path of a file to write, or a URI: --out \(path=\)"):
        export_run(run, to="csv")
    with pytest.raises(ValueError, match=r"files cannot say which samples are not kept.* parquet, jsonl, csv can"):
        export_run(run, out, to="files", all_samples=True)
    with pytest.raises(FileNotFoundError, match=r"holds neither index\.json nor train/index\.json"):
        export_run(run, out, dataset=tmp_path)
    other = make_mds(N, seed=9, per_shard=40)
    with pytest.raises(
        ValueError, match=r"is none of the 1 streams that the run read: in stream .*shard.00000\.mds. has 51 samples in"
    ):
        export_run(run, out, dataset=other)
    bare = make_mds(N)
    done = export_run(run, out, dataset=bare)
    assert f"{bare} has no origins.parquet, as prepare and index write it" in done.notes[0]
    with pytest.raises(ValueError, match=r"has no origins\.parquet, as `ted-stream prepare`, `ted-stream index` and"):
        export_run(run, out, to="files", dataset=bare, overwrite=True)
    with pytest.raises(ValueError, match="119 origins do not fit the 120 samples"):
        write_origins(bare, (("x", None, None) for _ in range(N - 1)))
    assert not Path(bare, "origins.parquet").exists()
    shutil.copy(f"{data}/origins.parquet", f"{other}/origins.parquet")
    write_run(tmp_path / "others", DatasetLayout(streams=(layout_of_index(read_index(other)),)), [np.arange(N) < 9])
    with pytest.raises(ValueError, match=r"origins\.parquet is of shards with fingerprint .* was made anew since"):
        export_run(tmp_path / "others", out, dataset=other, overwrite=True)
    Path(f"{other}/origins.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"origins\.parquet is damaged"):
        export_run(tmp_path / "others", out, dataset=other, overwrite=True)


def test_runs_of_map_style_datasets_go_by_index(tmp_path: Path) -> None:
    write_run(tmp_path / "run", layout_of(7, 3), [np.arange(10) < 4])
    done = export_run(tmp_path / "run", tmp_path / "kept")
    assert "samples go by stream, shard and position: --dataset" in done.notes[0]
    assert pq.read_table(tmp_path / "kept")["file"].null_count == 4


def test_the_command_takes_every_format() -> None:
    assert [to.value for to in To] == [*FORMATS, *COPIES]
