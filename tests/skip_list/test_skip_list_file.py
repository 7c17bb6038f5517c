import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyroaring import BitMap

from ted_stream.skip_list import (
    DatasetLayout,
    ShardLayout,
    SkipList,
    SkipListError,
    StreamLayout,
    from_bytes,
    parquet,
    read_skip_list,
    to_bytes,
    write_skip_list,
)

_SNIPPET = """
import pyarrow.parquet as pq
from pyroaring import BitMap
for row in pq.read_table("ep0007.parquet").to_pylist():
    print(row["stream"], row["shard"], list(BitMap.deserialize(row["pruned"])))
"""


def _bytes_of(rows: list[dict], metadata: dict[str, str], schema: pa.Schema | None = None) -> bytes:
    """A file with these rows whose own content hash and checksum are right, as a forger would write it."""
    metadata = {**metadata, "content": parquet._content(rows)}
    metadata["checksum"] = parquet._checksum(metadata)
    names = {f"ted_stream.{name}": value for name, value in metadata.items()}
    columns = parquet._SCHEMAS[int(metadata["format_version"])] if schema is None else schema
    table = pa.Table.from_pylist(rows, schema=columns.with_metadata(names))
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue().to_pybytes()


def _parts(data: bytes) -> tuple[list[dict], dict[str, str]]:
    file = pq.ParquetFile(pa.BufferReader(data))
    named = {k.decode(): v.decode() for k, v in file.metadata.metadata.items()}
    metadata = {k.removeprefix("ted_stream."): v for k, v in named.items() if k.startswith("ted_stream.")}
    assert len(metadata.pop("checksum")) == 64
    return file.read().to_pylist(), metadata


def test_round_trip_through_a_new_folder(each, tmp_path):
    path = tmp_path / "run" / "skip_lists" / "ep0007.parquet"
    write_skip_list(each, path)
    assert read_skip_list(path) == each
    assert read_skip_list(str(path), layout=each.layout, digest=each.digest) == each
    assert os.listdir(path.parent) == ["ep0007.parquet"]


@pytest.mark.parametrize("kept", [True, False])
def test_round_trip_of_nothing_and_of_everything_pruned(layout, kept):
    keep = np.full(layout.num_samples, kept)
    skip_list = SkipList.from_keep_mask(layout, keep, epoch=0, keep_ratio=float(kept), method="größe", run="")
    assert from_bytes(to_bytes(skip_list), source="memory") == skip_list


def test_bytes_are_reproducible(each):
    again = from_bytes(to_bytes(each), source="memory")
    assert to_bytes(again) == to_bytes(each)


def test_reading_with_a_reordered_layout_aligns(each, layout):
    reordered = DatasetLayout(streams=layout.streams[::-1])
    read = from_bytes(to_bytes(each), source="memory", layout=reordered, digest=each.digest)
    assert read == each.aligned_to(reordered)
    assert read != each


def test_twin_streams_round_trip():
    twin = StreamLayout(shards=(ShardLayout(name="a", size=1, samples=4),))
    layout = DatasetLayout(streams=(twin, twin, twin))
    ids = np.array([0, 5, 10])
    skip_list = SkipList.from_pruned_ids(layout, ids, epoch=1, keep_ratio=0.75, method="ted", run="r")
    assert np.array_equal(from_bytes(to_bytes(skip_list), source="memory", layout=layout).pruned_ids(), ids)


def test_columns_and_metadata_are_the_documented_ones(skip_list, layout):
    data = to_bytes(skip_list)
    rows, metadata = _parts(data)
    assert list(rows[0]) == ["stream", "shard", "bytes", "samples", "kept", "pruned"]
    assert [(r["shard"], r["bytes"], r["samples"], r["kept"]) for r in rows] == [
        ("a/shard.00000.mds", 100, 7, 5),
        ("a/shard.00001.mds", 40, 3, 2),
        ("a/shard.00000.mds", 90, 7, 4),
        ("größe.tar", 0, 5, 4),
    ]
    assert metadata.pop("content")
    assert metadata == {
        "format_version": "1",
        "fingerprint": layout.fingerprint,
        "epoch": "7",
        "keep_ratio": repr(2 / 3),
        "samples": "22",
        "kept": "15",
        "method": "ted",
        "run": "run-1",
        "digest": skip_list.digest,
    }


def test_a_list_without_weights_is_as_it_was_before_there_were_any(skip_list):
    """These are of the release that knew version 1 alone."""
    _, metadata = _parts(to_bytes(skip_list))
    assert metadata["format_version"] == "1"
    assert metadata["content"] == "301c8abfd85e90b7de6d497f30efaddcb8b44bf42773ccf6d7012c82f2029a08"
    assert metadata["digest"] == "41aeef05a23aa48cbb64914fe789671628115127b1322efd200b356da3915521"


def test_weights_are_a_column_of_version_2(skip_list, weighted):
    rows, metadata = _parts(to_bytes(skip_list))
    weighted_rows, weighted_metadata = _parts(to_bytes(weighted))
    eighths = [[8 * weight for weight in row.pop("weights")] for row in weighted_rows]
    assert eighths == [[1, 2, 3, 4, 5], [6, 7], [8, 9, 10, 11], [12, 13, 14, 15]]
    assert weighted_rows == rows
    assert weighted_metadata["format_version"] == "2"
    changed = {name for name in metadata if metadata[name] != weighted_metadata[name]}
    assert changed == {"format_version", "digest", "content"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[3]["weights"].pop(), r"weights of shard 'größe\.tar' is 3, the file says 4"),
        (lambda rows: rows[3]["weights"].append(1.0), r"weights of shard 'größe\.tar' is 5, the file says 4"),
        (lambda rows: rows[0]["weights"].append(rows[1]["weights"].pop(0)), r"'a/shard\.00000\.mds' is 6, .* says 5"),
        (lambda rows: rows[3].pop("weights"), r"shard 'größe\.tar' has no weights, but"),
        (lambda rows: [row.pop("weights") for row in rows], r"shard 'a/.*' has no weights, but"),
        (lambda rows: rows[3]["weights"].__setitem__(1, float("nan")), r"1 of 15 .* nan in shard 'größe\.tar'"),
        (lambda rows: rows[1]["weights"].__setitem__(0, 0.0), r"the first 0\.0 in shard 'a/shard\.00001\.mds'"),
        (lambda rows: rows[3]["weights"].__setitem__(3, -1.0), r"the first -1\.0 in shard 'größe\.tar'"),
        (lambda rows: rows[0]["weights"].__setitem__(0, float("inf")), "the first inf in shard"),
        (lambda rows: rows[0]["weights"].__setitem__(0, 3.0), "digest is"),
        (lambda rows: rows[0]["weights"].reverse(), "digest is"),
    ],
)
def test_weights_that_disagree_are_refused_even_with_right_checksums(weighted, change, message):
    rows, metadata = _parts(to_bytes(weighted))
    change(rows)
    with pytest.raises(SkipListError, match=message):
        from_bytes(_bytes_of(rows, metadata), source="forged")


@pytest.mark.parametrize("version", ["1", "2"])
def test_the_version_says_whether_there_are_weights(skip_list, weighted, version):
    given = skip_list if version == "2" else weighted
    rows, metadata = _parts(to_bytes(given))
    schema = parquet._SCHEMAS[given.format_version]
    with pytest.raises(SkipListError, match=r"columns are .* instead of"):
        from_bytes(_bytes_of(rows, {**metadata, "format_version": version}, schema), source="forged")


@pytest.mark.parametrize("element", [pa.float64(), pa.float16()])
def test_weights_of_another_type_are_refused(weighted, element):
    rows, metadata = _parts(to_bytes(weighted))
    schema = parquet._SCHEMA.append(pa.field("weights", pa.list_(element)))
    rows = [{**row, "weights": np.array(row["weights"], element.to_pandas_dtype())} for row in rows]
    with pytest.raises(SkipListError, match=r"weights: list<.*instead of.*weights: list<element: float not null>"):
        from_bytes(_bytes_of(rows, metadata, schema), source="forged")


def test_missing_weights_among_others_are_refused(weighted):
    rows, metadata = _parts(to_bytes(weighted))
    schema = parquet._SCHEMA.append(pa.field("weights", pa.list_(pa.float32())))
    names = {f"ted_stream.{name}": value for name, value in metadata.items()}
    names["ted_stream.checksum"] = parquet._checksum(metadata)
    rows[0]["weights"][2] = None
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema.with_metadata(names)), sink)
    with pytest.raises(SkipListError):
        from_bytes(sink.getvalue().to_pybytes(), source="forged")


@pytest.mark.parametrize("kept", [True, False])
def test_round_trip_of_weights_where_nothing_and_where_everything_is_pruned(layout, kept):
    keep = np.full(layout.num_samples, kept)
    weights = np.linspace(1, 2, keep.sum(), dtype=np.float32)
    skip_list = SkipList.from_keep_mask(
        layout, keep, epoch=0, keep_ratio=float(kept), method="m", run="r", weights=weights
    )
    found = from_bytes(to_bytes(skip_list), source="memory", digest=skip_list.digest)
    assert found == skip_list
    assert found.weights is not None
    assert found.weights.dtype == np.float32


def test_the_readme_snippet_needs_only_pyarrow_and_pyroaring(each, layout, tmp_path):
    write_skip_list(each, tmp_path / "ep0007.parquet")
    check = "import sys\nassert not {'ted_stream', 'torch', 'composer', 'streaming'} & set(sys.modules)\n"
    done = subprocess.run(
        [sys.executable, "-I", "-c", _SNIPPET + check],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    first, second, third = layout.stream_keys
    assert done.stdout.splitlines() == [
        f"{first} a/shard.00000.mds [0, 3]",
        f"{first} a/shard.00001.mds [1]",
        f"{second} a/shard.00000.mds [0, 1, 6]",
        f"{third} größe.tar [4]",
    ]


@pytest.mark.long
def test_every_flipped_byte_is_refused_or_meant_nothing(each):
    data = to_bytes(each)
    harmless = 0
    for position in range(len(data)):
        for pattern in (0x01, 0x80, 0xFF):
            flipped = bytearray(data)
            flipped[position] ^= pattern
            try:
                found = from_bytes(bytes(flipped), source="flipped", layout=each.layout)
            except SkipListError:
                continue
            assert found == each, (position, pattern)
            harmless += 1
    assert harmless < len(data)


def test_a_file_cut_anywhere_is_refused(each):
    data = to_bytes(each)
    for length in [0, 1, 4, *range(5, len(data), 37), len(data) - 1]:
        with pytest.raises(SkipListError, match="no Parquet file"):
            from_bytes(data[:length], source="cut")


def test_other_files_are_refused(tmp_path):
    text = tmp_path / "notes.txt"
    text.write_text("keep everything")
    with pytest.raises(SkipListError, match=r"notes\.txt.*no Parquet file"):
        read_skip_list(text)
    plain = tmp_path / "plain.parquet"
    pq.write_table(pa.table({"x": [1]}), plain)
    with pytest.raises(SkipListError, match="without ted_stream"):
        read_skip_list(plain)


def test_a_missing_file_says_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"ep0009\.parquet.*check the path"):
        read_skip_list(tmp_path / "ep0009.parquet")


def test_another_version_is_refused_with_both(skip_list, monkeypatch):
    monkeypatch.setattr(SkipList, "format_version", 5)
    monkeypatch.setitem(parquet._SCHEMAS, 5, parquet._SCHEMA)
    data = to_bytes(skip_list)
    monkeypatch.undo()
    with pytest.raises(SkipListError, match="version 5 found, 1, 2, 3, 4 supported"):
        from_bytes(data, source="new")


def test_another_digest_is_refused_with_both(each):
    other = replace(each, epoch=8).digest
    with pytest.raises(SkipListError, match=f"{each.digest}, asked for {other}"):
        from_bytes(to_bytes(each), source="memory", digest=other)


def test_another_dataset_is_refused(skip_list, layout):
    other = DatasetLayout(streams=layout.streams[:2])
    with pytest.raises(SkipListError, match=r"'ep7'.*3 streams, the dataset 2"):
        from_bytes(to_bytes(skip_list), source="ep7", layout=other)


def test_the_forger_of_these_tests_can_write_a_valid_file(each):
    assert from_bytes(_bytes_of(*_parts(to_bytes(each))), source="forged") == each


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows.pop(), "number of samples is 17, the file says 22"),
        (lambda rows: rows.append(rows[0]), r"two rows for shard 'a/shard\.00000\.mds'"),
        (lambda rows: rows.insert(0, rows.pop(1)), "dataset fingerprint is"),
        (lambda rows: rows.insert(1, rows.pop(2)), "dataset fingerprint is"),
        (lambda rows: rows[3].update(stream="0" * 16), "stream keys"),
        (lambda rows: rows[3].update(bytes=1), "dataset fingerprint is"),
        (lambda rows: rows[3].update(kept=3), r"kept samples in shard 'größe\.tar' is 4, the file says 3"),
        (lambda rows: rows[3].update(pruned=BitMap([5]).serialize()), "position 5 is pruned .* 5 samples"),
        (lambda rows: rows[3].update(pruned=BitMap([3]).serialize()), "digest is"),
        (
            lambda rows: rows[3].update(pruned=BitMap().serialize(), kept=5),
            "kept samples is 16, the file says 15",
        ),
        (lambda rows: rows[3].update(pruned=b""), r"the 0 bytes for shard 'größe\.tar' are no Roaring"),
        (lambda rows: rows[3].update(pruned=b"\xff" * 20), "the 20 bytes for shard .* are no Roaring"),
        (lambda rows: rows[3].update(samples=-1), "-1 samples"),
        (lambda rows: rows.clear(), "no streams"),
    ],
)
def test_rows_that_disagree_are_refused_even_with_right_checksums(skip_list, change, message):
    rows, metadata = _parts(to_bytes(skip_list))
    change(rows)
    with pytest.raises(SkipListError, match=message):
        from_bytes(_bytes_of(rows, metadata), source="forged")


@pytest.mark.parametrize(
    ("entry", "value", "message"),
    [
        ("epoch", "8", "digest is"),
        ("epoch", "seven", "damaged"),
        ("keep_ratio", "0.5", "digest is"),
        ("method", "random", "digest is"),
        ("fingerprint", "0" * 64, "dataset fingerprint is"),
        ("samples", "23", "number of samples is 22, the file says 23"),
        ("kept", "14", "kept samples is 15, the file says 14"),
        ("surprise", "1", "metadata has the entries"),
    ],
)
def test_metadata_that_disagrees_is_refused_even_with_right_checksums(each, entry, value, message):
    rows, metadata = _parts(to_bytes(each))
    with pytest.raises(SkipListError, match=message):
        from_bytes(_bytes_of(rows, {**metadata, entry: value}), source="forged")


def test_changed_bytes_are_refused_before_any_bitmap_is_deserialized(skip_list, monkeypatch):
    rows, metadata = _parts(to_bytes(skip_list))
    hidden = [{**row, "pruned": BitMap().serialize()} for row in rows]
    monkeypatch.setattr(parquet, "_content", lambda _: metadata["content"])
    data = _bytes_of(hidden, metadata)
    monkeypatch.undo()
    monkeypatch.setattr(parquet, "_bitmap_of", lambda _: pytest.fail("deserialized untrusted bytes"))
    with pytest.raises(SkipListError, match="content hash of the rows"):
        from_bytes(data, source="changed")


def test_other_columns_are_refused(skip_list):
    rows, metadata = _parts(to_bytes(skip_list))
    schema = parquet._SCHEMA.set(2, pa.field("bytes", pa.int32(), nullable=False))
    with pytest.raises(SkipListError, match=r"bytes: int32.*instead of.*bytes: int64"):
        from_bytes(_bytes_of(rows, metadata, schema), source="forged")


@pytest.mark.parametrize("function", ["replace", "fsync"])
def test_a_crash_while_writing_leaves_the_old_file_alone(each, tmp_path, monkeypatch, function):
    path = tmp_path / "ep0007.parquet"
    write_skip_list(each, path)

    def crash(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, function, crash)
    with pytest.raises(OSError, match="disk full"):
        write_skip_list(replace(each, epoch=8), path)
    monkeypatch.undo()
    assert read_skip_list(path) == each
    assert os.listdir(tmp_path) == ["ep0007.parquet"]


@pytest.mark.parametrize(
    ("shards", "samples", "keep_ratio", "bits"),
    [
        (16, 65_536, 0.5, 1),
        (16, 65_536, 0.3, 1),
        (1000, 1000, 0.95, 1),
        (1000, 1000, 0.5, 3),
        (500, 8192, 0.3, 3),
    ],
)
def test_size_bound(shards, samples, keep_ratio, bits):
    """At most `bits` per sample, 64 bytes per shard and 4 KiB.

    Roaring stores up to 4,096 positions per 65,536 as 16-bit numbers, so that small shards, pruned by half,
    cost more than one bit per sample.
    """
    names = (f"shard.{i:05d}.mds" for i in range(shards))
    stream = StreamLayout(shards=tuple(ShardLayout(name=n, size=2**26, samples=samples) for n in names))
    keep = np.random.default_rng(0).random(shards * samples) < keep_ratio
    layout = DatasetLayout(streams=(stream,))
    skip_list = SkipList.from_keep_mask(layout, keep, epoch=7, keep_ratio=keep_ratio, method="ted", run="r")
    assert len(to_bytes(skip_list)) <= bits * keep.size / 8 + 64 * shards + 4096
