"""The file of scores: what it holds, and what is refused."""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from run_folders import write_run

from ted_stream.export import Scores, ScoresError, export_run, read_scores, write_scores
from ted_stream.export import scores as scores_module
from ted_stream.export.run_files import running_scores_to_bytes
from ted_stream.skip_list import DatasetLayout, ShardLayout, SkipList, StreamLayout, write_skip_list

N = 22
PREFIX = b"ted_stream.scores."
PROVENANCE = {"method": "EL2N()", "epochs": "20", "seed": "0", "größe": "klein"}


def _stream(*shards: tuple[str, int, int]) -> StreamLayout:
    return StreamLayout(shards=tuple(ShardLayout(name=name, size=size, samples=n) for name, size, n in shards))


@pytest.fixture
def layout() -> DatasetLayout:
    """Three streams of 2, 1 and 1 shards; shard names shared between streams."""
    first = _stream(("a/shard.00000.mds", 100, 7), ("a/shard.00001.mds", 40, 3))
    return DatasetLayout(streams=(first, _stream(("a/shard.00000.mds", 90, 7)), _stream(("größe.tar", 0, 5))))


@pytest.fixture
def values() -> dict[str, Any]:
    scores = np.linspace(-1, 1, N, dtype=np.float32)
    scores[[3, 20]] = np.nan
    return {"scores": scores, "labels": np.arange(N) % 3, "keys": [None, *(f"img/{at}" for at in range(1, N))]}


@pytest.fixture
def path(tmp_path, layout, values) -> str:
    path = f"{tmp_path}/run/scores.parquet"
    write_scores(path, layout, **values, provenance=PROVENANCE)
    return path


def _rewrite(path: str, change: Callable[[pa.Table], pa.Table], **metadata: str) -> None:
    """Change the rows, and metadata whose own checksum is right, as a forger would."""
    table = pq.read_table(path)
    ours = {k.removeprefix(PREFIX).decode(): v.decode() for k, v in table.schema.metadata.items() if PREFIX in k}
    ours |= metadata
    del ours["checksum"]
    ours["checksum"] = hashlib.sha256(json.dumps(ours, sort_keys=True).encode()).hexdigest()
    named = {PREFIX + name.encode(): text for name, text in ours.items()}
    pq.write_table(change(table).replace_schema_metadata(named), path)


def _set(name: str, row: int, value: Any) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        at, items = table.schema.get_field_index(name), table[name].to_pylist()
        items[row] = value
        field = table.schema.field(name)
        return table.set_column(at, field, pa.array(items, from_pandas=False).cast(field.type))

    return change


def _same(found: Scores, values: dict[str, Any]) -> None:
    np.testing.assert_array_equal(found.scores, values["scores"])
    assert found.scores.dtype == np.float32
    assert found.labels is not None
    np.testing.assert_array_equal(found.labels, values["labels"])
    assert found.keys == tuple(values["keys"])


def test_round_trip(path, layout, values):
    for found in (read_scores(path), read_scores(path, layout)):
        _same(found, values)
        assert found.labels is not None
        assert found.labels.dtype == np.int64
        assert found.provenance == PROVENANCE
        assert found.fingerprint == layout.fingerprint
        assert len(found.digest) == 64
        assert len(found) == N
        assert not found.scores.flags.writeable
        assert not found.labels.flags.writeable
    assert os.listdir(os.path.dirname(path)) == ["scores.parquet"]


def test_round_trip_of_scores_alone(tmp_path, layout):
    path = tmp_path / "scores.parquet"
    write_scores(path, layout, np.full(N, np.nan), provenance={})
    found = read_scores(path, layout)
    assert (found.labels, found.keys, found.provenance) == (None, None, {})
    assert np.isnan(found.scores).all()


def test_columns_are_the_documented_ones(path, layout):
    table = pq.read_table(path)
    rows = table.to_pylist()
    assert list(rows[0]) == ["sample_id", "stream", "shard", "position", "key", "score", "label"]
    assert table.schema.field("score").type == pa.float32()
    first, second, third = layout.stream_keys
    places = [(row["sample_id"], row["stream"], row["shard"], row["position"]) for row in rows]
    assert places[8] == (8, first, "a/shard.00001.mds", 1)
    assert places[10] == (10, second, "a/shard.00000.mds", 0)
    assert places[21] == (21, third, "größe.tar", 4)
    assert [row["sample_id"] for row in rows if row["score"] is None] == [3, 20]
    assert table.schema.metadata[PREFIX + b"provenance.method"] == b"EL2N()"


def test_is_aligned_to_another_order_of_streams(path, layout, values, tmp_path):
    other = DatasetLayout(streams=layout.streams[::-1])
    found = read_scores(path, other)
    order = [*range(17, 22), *range(10, 17), *range(10)]
    expected = {"scores": values["scores"][order], "labels": values["labels"][order]}
    expected["keys"] = [values["keys"][at] for at in order]
    _same(found, expected)
    again = tmp_path / "again.parquet"
    write_scores(again, other, **expected, provenance={})
    assert read_scores(again).digest == found.digest == read_scores(path).digest


def test_the_digest_is_of_all_that_was_found(path, layout, values, tmp_path):
    digests = {read_scores(path).digest}
    changed = [{"scores": values["scores"] + 1}, {"labels": values["labels"][::-1]}, {"labels": None}, {"keys": None}]
    for at, change in enumerate(changed):
        other = tmp_path / f"{at}.parquet"
        write_scores(other, layout, **{**values, **change}, provenance=PROVENANCE)
        digests.add(read_scores(other).digest)
    assert len(digests) == 5


def test_twin_streams_and_many_row_groups(tmp_path):
    twin = _stream(("a", 1, 4))
    layout = DatasetLayout(streams=(twin, twin, twin))
    path, scores = str(tmp_path / "scores.parquet"), np.arange(12, dtype=np.float32)
    write_scores(path, layout, scores, keys=list("abcdefghijkl"), provenance={})
    pq.write_table(pq.read_table(path), path, row_group_size=5)
    found = read_scores(path, layout)
    assert found.scores.tolist() == scores.tolist()
    assert found.keys == tuple("abcdefghijkl")


@pytest.mark.parametrize("name", ["replace", "fsync"])
def test_is_written_whole_or_not_at_all(path, layout, values, monkeypatch, name):
    def crash(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, name, crash)
    with pytest.raises(OSError, match="disk full"):
        write_scores(path, layout, values["scores"] + 1, provenance={})
    monkeypatch.undo()
    _same(read_scores(path), values)
    assert os.listdir(os.path.dirname(path)) == ["scores.parquet"]


def test_every_changed_byte_is_refused_or_meant_nothing(path, layout, values):
    with open(path, "rb") as file:
        data = file.read()
    harmless = 0
    for position in range(0, len(data), 7):
        flipped = bytearray(data)
        flipped[position] ^= 0x41
        with open(path, "wb") as file:
            file.write(flipped)
        try:
            found = read_scores(path, layout)
        except ScoresError:
            continue
        _same(found, values)
        harmless += 1
    assert harmless < len(data) / 14


def test_a_file_cut_anywhere_is_refused(path):
    with open(path, "rb") as file:
        data = file.read()
    for length in [0, 1, 4, *range(5, len(data), 293), len(data) - 1]:
        with open(path, "wb") as file:
            file.write(data[:length])
        with pytest.raises(ScoresError, match=r"scores\.parquet'.*no whole Parquet file"):
            read_scores(path)


def test_other_files_are_refused_by_name(tmp_path, layout):
    skip_list = SkipList.from_pruned_ids(layout, np.array([1]), epoch=0, keep_ratio=0.9, method="ted", run="r")
    path = tmp_path / "other.parquet"
    write_skip_list(skip_list, path)
    with pytest.raises(
        ScoresError, match=r"other\.parquet': this is a skip-list, not a file of scores; check the path"
    ):
        read_scores(path)
    write_run(tmp_path / "run", layout, [np.arange(N) > 2])
    export_run(tmp_path / "run", path, overwrite=True)
    with pytest.raises(ScoresError, match="this is a manifest of kept samples"):
        read_scores(path)
    path.write_bytes(running_scores_to_bytes(np.zeros(N, np.float32), epoch=0, layout=layout))
    with pytest.raises(ScoresError, match="this is the running scores of a run"):
        read_scores(path)
    pq.write_table(pa.table({"score": [1.0]}), path)
    with pytest.raises(ScoresError, match="this is another Parquet file"):
        read_scores(path)
    path.write_text("keep everything")
    with pytest.raises(ScoresError, match="15 bytes are no whole Parquet file"):
        read_scores(path)
    with pytest.raises(FileNotFoundError, match="check the path"):
        read_scores(tmp_path / "none.parquet")


def test_another_version_is_refused_with_both(path):
    _rewrite(path, lambda table: table, format_version="3")
    with pytest.raises(ScoresError, match="format version 3 found, 1 and 2 supported"):
        read_scores(path)


def test_another_dataset_is_refused_with_both(path, layout):
    other = DatasetLayout(streams=layout.streams[:2])
    with pytest.raises(ScoresError, match=f"dataset {layout.fingerprint}, this one is {other.fingerprint}"):
        read_scores(path, other)


def _with_content(layout: DatasetLayout, mark: str) -> DatasetLayout:
    of = {id(shard): replace(shard, content=f"sha1:{mark}{at}") for at, shard in enumerate(layout.shards)}
    streams = (StreamLayout(shards=tuple(of[id(shard)] for shard in stream.shards)) for stream in layout.streams)
    return DatasetLayout(streams=tuple(streams))


def test_scores_of_other_content_are_refused(layout, values, tmp_path):
    path, mine = f"{tmp_path}/scores.parquet", _with_content(layout, "a")
    write_scores(path, mine, **values, provenance=PROVENANCE)
    _same(read_scores(path, mine), values)
    with pytest.raises(ScoresError, match=f"dataset {mine.fingerprint}, .* agree, but the content differs"):
        read_scores(path, _with_content(layout, "b"))
    with pytest.raises(ScoresError, match="agree, but this dataset has no digests of their content"):
        read_scores(path, layout)


def test_scores_without_content_are_matched_by_names_with_one_warning(path, layout, values):
    turned = DatasetLayout(streams=(layout.streams[2], *layout.streams[:2]))
    with pytest.warns(UserWarning, match="content is the same could not be checked") as told:
        found = read_scores(path, _with_content(turned, "a"))
    assert len(told) == 1
    assert np.array_equal(found.scores, np.roll(values["scores"], 5), equal_nan=True)


def test_the_forger_of_these_tests_can_write_a_valid_file(path, values):
    _rewrite(path, _set("score", 0, float(values["scores"][0])))
    _same(read_scores(path), values)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_set("score", 0, 5.0), "digest is"),
        (_set("score", 0, None), "digest is"),
        (_set("label", 1, 7), "digest is"),
        (_set("key", 1, "other"), "digest is"),
        (_set("stream", 2, "0" * 16), "row 2 is not where the rows before it put it"),
        (_set("shard", 9, "other"), "row 9 is not where"),
        (_set("position", 4, 5), "row 4 is not where"),
        (_set("position", 0, 1), r"the first row is at position \[1\]"),
        (_set("sample_id", 4, 5), "sample ids are not those from 0 to 21"),
        (lambda table: table.slice(0, 20), "number of samples is 20, the file says 22"),
        (lambda table: table.drop_columns(["label"]), r"columns are \['sample_id'"),
        (
            lambda table: table.set_column(5, pa.field("score", pa.float64()), table["score"].cast(pa.float64())),
            "of other types",
        ),
    ],
)
def test_rows_that_disagree_are_refused(path, change, words):
    _rewrite(path, change)
    with pytest.raises(ScoresError, match=words):
        read_scores(path)


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"samples": "23"}, "number of samples is 22, the file says 23"),
        ({"digest": "0" * 64}, "digest is .* the file says 0000"),
        ({"fingerprint": "0" * 64}, "digest is"),
        ({"surprise": "1"}, r"metadata has the entries .*'surprise'"),
    ],
)
def test_metadata_that_disagrees_is_refused(path, metadata, words):
    _rewrite(path, lambda table: table, **metadata)
    with pytest.raises(ScoresError, match=words):
        read_scores(path)


def test_changed_provenance_is_refused(path):
    table = pq.read_table(path)
    named = {**table.schema.metadata, PREFIX + b"provenance.seed": b"1"}
    pq.write_table(table.replace_schema_metadata(named), path)
    with pytest.raises(ScoresError, match="checksum of the metadata is"):
        read_scores(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_set("score", 0, float("nan")), "infinities or NaN"),
        (_set("score", 0, float("inf")), "infinities or NaN"),
        (_set("label", 0, None), "1 of 22 samples have no label"),
    ],
)
def test_values_that_nobody_writes_are_refused_even_with_a_right_digest(path, change, words, monkeypatch):
    monkeypatch.setattr(scores_module, "_agree", lambda what, found, written: None)
    _rewrite(path, change)
    with pytest.raises(ScoresError, match=words):
        read_scores(path)


def test_shards_of_another_dataset_are_refused_even_with_a_right_fingerprint(path, layout, monkeypatch):
    other = DatasetLayout(streams=(*layout.streams[:2], _stream(("größer.tar", 0, 5))))
    monkeypatch.setattr(DatasetLayout, "fingerprint", layout.fingerprint)
    with pytest.raises(ScoresError, match="of other shards"):
        read_scores(path, other)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"scores": np.zeros(21)}, "21 scores do not fit a dataset of 22 samples"),
    ({"labels": np.zeros(23, int)}, "23 labels do not fit"),
    ({"keys": ["a"]}, "1 keys do not fit"),
    ({"scores": np.zeros((22, 1))}, r"shape \(22, 1\)"),
    ({"scores": np.append(np.zeros(21), np.inf)}, "1 infinite values"),
    ({"scores": np.full(22, 1e39)}, "22 infinite values as float32"),
    ({"labels": np.zeros(22)}, "labels are of float64; give whole numbers"),
    ({"labels": np.array(["cat"] * 22)}, "labels are of <U3"),
    ({"keys": [7] * 22}, "cannot be stored"),
    ({"keys": ["\udc80"] * 22}, "cannot be stored"),
    ({"provenance": {"seed": 0}}, "give text by name"),
    ({"provenance": {"seed": "\udc80"}}, "cannot be stored"),
]


@pytest.mark.parametrize(("change", "words"), WRONG)
def test_what_cannot_be_written_is_refused(tmp_path, layout, values, change, words):
    path = tmp_path / "scores.parquet"
    with pytest.raises(ScoresError, match=words):
        write_scores(path, layout, **{**values, "provenance": PROVENANCE, **change})
    assert not path.exists()


def test_a_million_samples(tmp_path):
    shards = tuple(ShardLayout(name=f"shard.{at:05d}.mds", size=1, samples=4000) for at in range(250))
    layout = DatasetLayout(streams=(StreamLayout(shards=shards),))
    scores, path = np.random.default_rng(0).random(10**6, dtype=np.float32), tmp_path / "scores.parquet"
    write_scores(path, layout, scores, labels=np.arange(10**6) % 1000, provenance=PROVENANCE)
    np.testing.assert_array_equal(read_scores(path, layout).scores, scores)
    assert path.stat().st_size < 8 * 10**6
