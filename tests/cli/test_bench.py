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
