"""What would lose, mix or miss samples while a dataset is copied is refused, and named."""

import json
import signal
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_folders import random_masks, write_run
from streaming import MDSWriter
from typer.testing import CliRunner

from ted_stream.cli.commands import app
from ted_stream.cli.settings_help import scoring_settings
from ted_stream.digests import sampled_digest
from ted_stream.export import Copied, Selection, ShardCopy, materialise
from ted_stream.export.shard_samples import read_samples
from ted_stream.export.stream_index import layout_of_index, read_index
from ted_stream.files import write_bytes
from ted_stream.folders import resumable_folder
from ted_stream.processes import in_order
from ted_stream.skip_list import DatasetLayout

N = 60
Map = Callable[[Callable[[ShardCopy], Copied], Iterable[ShardCopy]], Iterator[Copied]]


def write_samples(folder: Path, column: str = "x", **options: Any) -> str:
    settings = {"columns": {column: "bytes"}, "hashes": ["sha1"], "size_limit": 400, **options}
    with MDSWriter(out=str(folder), **settings) as writer:
        for index in range(N):
            writer.write({column: np.random.default_rng(index).bytes(10 + index % 5)})
    return str(folder)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_samples(tmp_path_factory.mktemp("data") / "samples")


@pytest.fixture(scope="module")
def run(data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_over(data, tmp_path_factory.mktemp("runs") / "run")


def run_over(dataset: str, folder: Path) -> Path:
    layout = DatasetLayout(streams=(layout_of_index(read_index(dataset)),))
    write_run(folder, layout, random_masks(layout.num_samples, 2))
    return folder


def content_of(folder: Path | str) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def stopping(after: int) -> Map:
    """Copies so many shards, and ends as Ctrl-C does."""

    def some(function: Callable[[ShardCopy], Copied], copies: Iterable[ShardCopy]) -> Iterator[Copied]:
        for copy, _ in zip(copies, range(after), strict=False):
            yield function(copy)
        raise KeyboardInterrupt

    return some


def test_the_source_is_not_replaced(run: Path, data: str, tmp_path: Path) -> None:
    kept = materialise(run, tmp_path / "data/kept/train", dataset=data).path
    again, before = run_over(kept, tmp_path / "again"), content_of(kept)
    (tmp_path / "link").symlink_to(kept)
    for given in (kept, tmp_path / "link"):
        for out in (kept, tmp_path / "link", Path(kept, "more"), Path(kept).parent):
            with pytest.raises(ValueError, match=rf"^{out} is, holds or lies within {given}, .* name a place apart"):
                materialise(again, out, dataset=given, overwrite=True)
    assert content_of(kept) == before
    materialise(again, f"{kept}-2", dataset=kept, overwrite=True)


@pytest.mark.parametrize("is_unpacked", [False, True])
def test_a_digest_of_a_compressed_shard_is_compared(is_unpacked: bool, tmp_path: Path) -> None:
    folder = write_samples(tmp_path / "data", compression="zstd", hashes=[])
    entry = read_index(folder)["shards"][1]
    path = Path(folder, entry["zip_data"]["basename"])
    zipped = path.read_bytes()
    known = sampled_digest(lambda begin, end: zipped[begin:end], len(zipped))
    data = read_samples(folder, entry, "").data
    if is_unpacked:
        Path(folder, entry["raw_data"]["basename"]).write_bytes(data)
    assert read_samples(folder, entry, f"sampled-zip:{known}").data == data
    with pytest.raises(ValueError, match=rf"shard.00001.mds.zstd has sampled {known}, expected 00: it is damaged"):
        read_samples(folder, entry, "sampled-zip:00")
    if is_unpacked:  # without the file that it is a digest of
        path.unlink()
        assert read_samples(folder, entry, f"sampled-zip:{known}").data == data


def test_exports_that_meet_in_one_place_are_refused(run: Path, data: str, tmp_path: Path) -> None:
    def both(function: Callable[[ShardCopy], Copied], copies: Iterable[ShardCopy]) -> Iterator[Copied]:
        for copy in copies:
            yield function(copy)
            yield function(replace(copy, plan="of another export"))

    with pytest.raises(FileExistsError, match=r"000000.json was written by another export .*: export to another place"):
        materialise(run, tmp_path / "kept", dataset=data, map_shards=both)


def test_a_relative_dataset_is_found_from_other_folders(
    run: Path, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def elsewhere(function: Callable[[ShardCopy], Copied], copies: Iterable[ShardCopy]) -> Iterator[Copied]:
        for copy in [*copies]:
            monkeypatch.chdir("/")
            yield function(copy)

    monkeypatch.chdir(Path(data).parent)
    done = materialise(run, tmp_path / "kept", dataset="samples", map_shards=elsewhere)
    monkeypatch.chdir(Path(data).parent)
    assert content_of(done.path) == content_of(materialise(run, tmp_path / "whole", dataset=data).path)


def test_a_killed_worker_is_told() -> None:
    with pytest.raises(OSError, match="worker process was ended by the system, perhaps for want of memory; use fewer"):
        list(in_order(signal.raise_signal, [signal.SIGKILL], 2))


def test_column_names_that_tars_have_no_room_for_are_refused(tmp_path: Path) -> None:
    fits, longer = "a" * 83, "a" * 84
    for column in (fits, longer):
        write_samples(tmp_path / column, column)
        run_over(str(tmp_path / column), tmp_path / f"run-{column}")
    done = materialise(tmp_path / f"run-{fits}", tmp_path / "out", to="webdataset", dataset=tmp_path / fits)
    members = 0
    for path in Path(done.path).glob("*.tar"):
        with tarfile.open(path) as tar:
            for member in tar:
                told = tarfile.TarInfo(member.name)
                told.size = member.size
                header = path.read_bytes()[member.offset : member.offset_data]
                assert header == told.tobuf(tarfile.USTAR_FORMAT)
                assert len(member.name) == 100
                members += 1
    assert members == done.kept
    with pytest.raises(ValueError, match=f"column '{longer}' has a name of 84 characters, and tars have room for 83"):
        materialise(tmp_path / f"run-{longer}", tmp_path / "none", to="webdataset", dataset=tmp_path / longer)
    assert not (tmp_path / ".none.unfinished").exists()


def test_messages_name_what_is_written(run: Path, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyboardInterrupt):
        materialise(run, tmp_path / "out", dataset=data, map_shards=stopping(1))
    with pytest.raises(FileExistsError, match=r"an unfinished exported dataset that differs in: epoch, .*\. Give what"):
        materialise(run, tmp_path / "out", dataset=data, selection=Selection(epoch=0))
    with (
        resumable_folder(tmp_path / "held", {}, kind="exported dataset", is_finished=lambda _: False),
        pytest.raises(FileExistsError, match=r"another process writes the exported dataset .*held at this moment"),
    ):
        materialise(run, tmp_path / "held", dataset=data)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="the folder that the exported dataset is to become"):
        materialise(run, ".", dataset=data)


def unpacked(folder: str, out: Path) -> str:
    """The same shards, of an index that knows no other form of them."""
    index = read_index(folder)
    for entry in index["shards"]:
        data = read_samples(folder, entry, "").data
        entry["zip_data"] = entry["compression"] = None
        write_bytes(out / entry["raw_data"]["basename"], data)
    write_bytes(out / "index.json", json.dumps(index).encode())
    return str(out)


def test_another_form_of_the_dataset_does_not_go_on(tmp_path: Path) -> None:
    zipped, out = write_samples(tmp_path / "zipped", compression="zstd"), tmp_path / "out"
    data, run = unpacked(zipped, tmp_path / "data"), run_over(zipped, tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        materialise(run, out, dataset=zipped, map_shards=stopping(1))
    with pytest.raises(FileExistsError, match="unfinished exported dataset that differs in: files"):
        materialise(run, out, dataset=data)
    materialise(run, out, dataset=zipped)
    assert content_of(out) == content_of(materialise(run, tmp_path / "whole", dataset=zipped).path)


@pytest.mark.parametrize("option", ["--no-weights", "--workers=2"])
def test_options_of_datasets_are_refused_for_lists(option: str, run: Path, data: str, tmp_path: Path) -> None:
    given = ["export", str(run), "--dataset", data, "--out", str(tmp_path / "out")]
    refused = CliRunner().invoke(app, [*given, "--to", "csv", option])
    assert refused.exit_code == 1
    assert f"csv is a list, for which {option.partition('=')[0]} would do nothing" in refused.output.replace("\n", " ")
    assert not (tmp_path / "out").exists()
    assert CliRunner().invoke(app, [*given, "--to", "csv"]).exit_code == 0


def test_settings_are_read_in_any_locale(monkeypatch: pytest.MonkeyPatch) -> None:
    def of_the_locale(path: Path, encoding: str | None = None) -> str:
        return path.read_bytes().decode(encoding or "ascii")

    expected = scoring_settings()
    monkeypatch.setattr(Path, "read_text", of_the_locale)
    assert scoring_settings() == expected
