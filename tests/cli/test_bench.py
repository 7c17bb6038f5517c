import re

import pytest
from typer.testing import CliRunner

from ted_stream.cli import app


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
        app, ["bench", "step", "--model", "convnet", "--rounds", "2", "--steps", "3", "--batch-size", "4"]
    )
    assert result.exit_code == 0, result.output
    (row,) = [line for line in result.output.splitlines() if "convnet" in line]
    _, _, batch_size, plain, *ratios, _ = row.split("│")
    assert int(batch_size) == 4
    assert float(plain) > 0
    assert len(ratios) == 4  # plain again, and three sites
    for ratio in ratios:
        middle, low, high = map(float, re.findall(r"[0-9.]+", ratio))
        assert 0 < low <= middle <= high


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
