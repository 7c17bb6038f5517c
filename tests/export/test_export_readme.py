"""What the README of exports shows does what it says."""

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from run_folders import random_masks, write_run
from streaming import StreamingDataset
from typer.testing import CliRunner

import ted_stream.export as exports
from ted_stream import PrunedStreamingDataset
from ted_stream.cli.commands import app
from ted_stream.export.rows import SCHEMA
from ted_stream.pipelines.corpora.digits import prepare_digits

README = (Path(exports.__file__).parent / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_commands_and_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_mds: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    prepare_digits("data/digits")
    layout = PrunedStreamingDataset(local="data/digits/train", batch_size=8).layout
    masks = random_masks(layout.num_samples, 4)
    scores = np.random.default_rng(0).normal(size=layout.num_samples).astype(np.float32)
    write_run("runs/ted", layout, masks, scores=scores)
    Path("runs/ted/config.yaml").write_text("data: {path: data/digits}\n")
    Path("mine").symlink_to(make_mds(120))
    (commands,) = blocks("console")
    for command in commands.splitlines():
        program, *arguments = shlex.split(command)
        assert program == "ted-stream"
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 0, f"{command}\n{done.output}"
        assert "go by stream" not in done.output, command  # the run's config names the dataset, and that the samples
    table = pq.read_table("kept.parquet")
    assert table["sample_id"].to_pylist() == np.flatnonzero(masks[3]).tolist()
    assert sorted(map(int, table["key"].to_pylist()))[-1] <= 1796
    assert pd.read_csv("kept.csv")["sample_id"].tolist() == np.flatnonzero(masks[2]).tolist()
    assert np.load("kept.npy").tolist() == np.flatnonzero(np.sum(masks, axis=0) >= 2).tolist()
    rows = [json.loads(line) for line in Path("best.jsonl").read_text().splitlines()]
    best = [row["sample_id"] for row in rows if row["kept"]]
    assert (len(rows), len(best)) == (layout.num_samples, round(0.3 * layout.num_samples))
    assert min(scores[best]) >= max(np.delete(scores, best))
    for code in blocks("python"):
        names: dict[str, Any] = {}
        exec(code, names)
    assert pq.read_table("best.parquet")["sample_id"].to_pylist() == best
    kept = [row["label"] for row in StreamingDataset(local="data/kept", batch_size=8)]
    assert kept == pq.read_table("kept.parquet")["label"].to_pylist()
    assert pq.read_table("data/best/origins.parquet")["key"].to_pylist() == [row["key"] for row in rows if row["kept"]]
    assert "TED kept" in capsys.readouterr().out
    assert pq.read_table("mine/origins.parquet")["key"].to_pylist()[:2] == [f"{at:032x}" for at in range(2)]


def test_a_dataset_that_has_gone_or_changed_is_not_taken_for_the_runs(
    tmp_path: Path, make_mds: Callable[..., str]
) -> None:
    data = make_mds(60)
    layout = PrunedStreamingDataset(local=data, batch_size=8).layout
    write_run(tmp_path / "run", layout, random_masks(60, 2))
    for path in (tmp_path / "gone", make_mds(60, seed=5, per_shard=30)):
        (tmp_path / "run/config.yaml").write_text(f"data: {{path: {path}}}\n")
        done = CliRunner().invoke(app, ["export", str(tmp_path / "run"), "--out", str(tmp_path / "out"), "--overwrite"])
        assert done.exit_code == 0, done.output
        assert (
            "samples go by stream, shard and position: --dataset (dataset=) names where they came from" in done.output
        )


def test_tables_name_all_there_is() -> None:
    for name in (*SCHEMA.names, *exports.FORMATS, *exports.COPIES):
        assert f"`{name}`" in README, name
    rows = [line for line in README.splitlines() if line.startswith("|")]
    assert all(line.endswith("|") for line in rows)


def test_a_job_of_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")
    monkeypatch.chdir(tmp_path)
    prepare_digits("data/digits")
    layout = PrunedStreamingDataset(local="data/digits/train", batch_size=8).layout
    write_run("runs/ted", layout, random_masks(layout.num_samples, 2))
    exports.materialise("runs/ted", "data/kept", dataset="data/digits")
    ray.init(num_cpus=2, include_dashboard=False)
    try:
        (code,) = blocks("py")
        exec(code, {})
    finally:
        ray.shutdown()
    files = [{path.name: path.read_bytes() for path in Path("data", name).iterdir()} for name in ("kept", "by-ray")]
    assert files[0] == files[1]
