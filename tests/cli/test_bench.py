import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ted_stream.cli.commands import app
from ted_stream.pipelines.benches.seeding import AUGMENTED
from ted_stream.pipelines.benches.step import VARIANTS, bench_step
from ted_stream.pipelines.corpora.digits import prepare_digits
from ted_stream.pipelines.training.paired import paired
from ted_stream.pruning.measures import MEASURES, SITES

pytestmark = pytest.mark.long


def test_selection_on_two_ranks():
    result = CliRunner(env={"COLUMNS": "160", "OMP_NUM_THREADS": "1"}).invoke(
        app, ["bench", "selection", "--samples", "30001", "--repeats", "2"]
    )
    assert result.exit_code == 0, result.output
    assert "2 ranks" in result.output
    (row,) = [line for line in result.output.splitlines() if "30,001" in line]
    assert len(row.split("│")) == 8  # six cells between the borders
    assert "does not fit" not in row


def test_step():
    result = CliRunner(env={"COLUMNS": "160"}).invoke(
        app, ["bench", "step", "--model", "convnet", "--rounds", "2", "--steps", "2", "--batch-size", "4"]
    )
    assert result.exit_code == 0, result.output
    rows = [line for line in result.output.splitlines() if line.startswith("convnet")]
    assert len(rows) == len(VARIANTS)
    for row, variant in zip(rows, VARIANTS, strict=True):
        words, ratios = row.split(variant, 1)
        _, batch_size, plain = words.split()
        assert int(batch_size) == 4
        assert float(plain) > 0
        middle, low, high = map(float, re.findall(r"[0-9.]+", ratios))
        assert 0 < low <= middle <= high


def test_a_step_that_trains_an_adapter_alone():
    variant = "mask_gradient, features"
    (row,) = bench_step("llama_lora", rounds=1, steps=1, batch_size=2, variants=[variant])
    assert (row.variant, row.batch_size) == (variant, 2)
    assert row.ratios[0] > 0


def test_every_measure_and_weights_are_timed():
    measures = [measure for measure, _ in VARIANTS.values() if measure is not None]
    assert {type(measure) for measure in measures} == set(MEASURES.values())
    assert {measure.site for measure in measures} >= {*SITES}
    assert VARIANTS["weights"] == (None, True)


def test_step_needs_nothing_but_torch():
    """On a machine without Composer the benchmark runs as a script, in the repository's root."""
    code = (
        "import sys, torch\n"
        "for host in ('composer', 'streaming', 'webdataset', 'omegaconf', 'typer', 'rich', 'transformers'):\n"
        "    sys.modules[host] = None\n"
        "from pipelines.benches.step import bench_step\n"
        "(row,) = bench_step('gpt', rounds=1, steps=1, batch_size=2, variants=['weights'])\n"
        "assert row.quartiles[1] > 0"
    )
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=True)


def test_boundary_on_two_ranks():
    result = CliRunner(env={"COLUMNS": "160", "OMP_NUM_THREADS": "1"}).invoke(
        app, ["bench", "boundary", "--samples", "3001", "--shards", "5", "--batch-size", "64"]
    )
    assert result.exit_code == 0, result.output
    rows = [line.split("│")[1:-1] for line in result.output.splitlines() if line.startswith("│")]
    *parts, total, recorded, _ = [[float(cell) for cell in cells] for _, *cells in rows]
    assert len(parts) == 7
    for epoch in range(2):
        taken = [part[epoch] for part in parts]
        assert sum(taken) == pytest.approx(total[epoch], abs=0.01)
        assert 0 < recorded[epoch] < total[epoch]


def test_streaming(tmp_path):
    bandwidth = 20.0  # MB/s
    options = {"size": 0.003, "keep-ratio": 0.5, "workers": 1, "bandwidth": bandwidth, "latency": 1, "repeats": 2}
    arguments = [f"--{name}={value}" for name, value in options.items()]
    result = CliRunner(env={"COLUMNS": "160"}).invoke(
        app, ["bench", "streaming", *arguments, "--json", str(tmp_path / "rows.json")]
    )
    assert result.exit_code == 0, result.output
    rows = [line.split("│")[1:-1] for line in result.output.splitlines() if line.startswith("│")]
    assert [row[0].strip() for row in rows] == ["stock", "keep 0.5"]
    assert float(rows[0][-1]) == 1
    stock, pruned = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert stock["kept"] >= options["size"] * 2**30
    assert 0 < pruned["samples"] < stock["samples"]
    assert 0 < pruned["kept"] < stock["kept"]
    for row in (stock, pruned):
        assert len(row["epochs"]) == 2
        for epoch in row["epochs"]:
            assert epoch["sent"] > row["kept"]
            assert epoch["requests"] >= 4  # HEAD and GET of the index and of the one shard
            assert epoch["seconds"] > 0.9 * row["kept"] / (bandwidth * 1e6)


def test_local(tmp_path):
    sizes = ["--raw-samples", "200", "--jpeg-samples", "20"]
    result = CliRunner(env={"COLUMNS": "160"}).invoke(
        app, ["bench", "local", *sizes, "--repeats", "1", "--json", str(tmp_path / "rows.json")]
    )
    assert result.exit_code == 0, result.output
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert [(row["kind"], row["workers"]) for row in rows] == [("raw", None), ("raw", 1), ("jpeg", None), ("jpeg", 1)]
    for row in rows:
        assert row["stock"][0] > 0
        assert row["ours"][0] > 0
    assert 3072 < rows[0]["sample_bytes"] < 3200
    assert 80_000 < rows[2]["sample_bytes"] < 120_000
    assert result.output.count("the dataset alone") == result.output.count("a loader with 1 worker") == 2


def test_seeding(tmp_path):
    sizes = ["--raw-samples", "200", "--jpeg-samples", "40", "--rounds", "1", "--json", str(tmp_path / "rows.json")]
    result = CliRunner(env={"COLUMNS": "160"}).invoke(app, ["bench", "seeding", *sizes])
    assert result.exit_code == 0, result.output
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert [(row["kind"], row["workers"]) for row in rows] == [
        (kind, workers) for kind in AUGMENTED for workers in (0, 1)
    ]
    for row in rows:
        assert row["plain"][0] > 0
        assert row["seeded"][0] > 0


def test_planning(tmp_path):
    sizes = ["--samples", "5000", "--shards", "7", "--stock-samples", "400000", "--pruned-samples", "300000"]
    result = CliRunner(env={"COLUMNS": "160"}).invoke(
        app, ["bench", "planning", *sizes, "--repeats", "2", "--json", str(tmp_path / "rows.json")]
    )
    assert result.exit_code == 0, result.output
    times, stock, ours = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert len(times["stock"]) == len(times["ours"]) == 2
    assert stock["planned"] > 400_000 * 8  # an id per sample, at least
    assert ours["planned"] > 0.3 * 300_000 * 8
    for memory in (stock, ours):
        assert 0 <= memory["made"] <= memory["planned"]


def test_materialising(tmp_path):
    sizes = ["--samples", "500", "--to", "mds", "--to", "hf", "--repeats", "2", "--json", str(tmp_path / "rows.json")]
    result = CliRunner(env={"COLUMNS": "160"}).invoke(app, ["bench", "materialising", *sizes])
    assert result.exit_code == 0, result.output
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert [(row["to"], row["workers"]) for row in rows] == [(to, number) for to in ("mds", "hf") for number in (1, 2)]
    for row in rows:
        assert len(row["seconds"]) == len(row["plain"]) == 2
        assert 0 < row["kept"] < row["samples"] == 500
        assert 100 * row["kept"] < row["written"]


def test_noise(tmp_path):
    """Every arm with its differences; on digits, too few of them to say anything."""
    prepare_digits(tmp_path / "digits")
    sizes = ["--seeds", "2", "--samples", "300", "--size", "8", "--epochs", "4"]
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["bench", "noise", str(tmp_path / "digits"), *sizes])
    assert result.exit_code == 0, result.output
    rows = [line for line in result.output.splitlines() if line.startswith("│")]
    names = [row.split("│")[1].strip() for row in rows]
    assert names[:2] == ["reference, 2 folds", "reference, 5 folds"]
    assert len(names) == 9
    (random,) = [row for row in rows if row.split("│")[1].strip() == "random"]
    assert "+0.00 ± 0.00" in random


def test_paired_differences():
    """By the t distribution with n - 1 degrees of freedom."""
    found, half = paired([3.0, 5.0, 4.0], [1.0, 2.0, 3.0])
    assert found == 2.0
    assert half == pytest.approx(4.302653 / 3**0.5, rel=1e-5)


@pytest.mark.parametrize("method", ["craig", "cd", "glister"])
def test_scoring(method):
    sizes = ["--samples", "500", "--classes", "5", "--features", "4"]
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["bench", "scoring", "--method", method, *sizes])
    assert result.exit_code == 0, result.output
    assert "500 samples" in result.output
    assert "50 kept" in result.output


def test_scoring_of_other_methods_is_refused():
    result = CliRunner().invoke(app, ["bench", "scoring", "--method", "el2n"])
    assert result.exit_code == 2
    assert "none of craig, cd, glister, dp" in result.output
