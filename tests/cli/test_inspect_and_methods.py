import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from made_runs import make_run
from typer.testing import CliRunner

from ted_stream.cli.commands import app
from ted_stream.cli.methods import entries
from ted_stream.export.scores import write_scores
from ted_stream.methods import METHODS
from ted_stream.methods.static import STATIC_METHODS
from ted_stream.skip_list import DatasetLayout, ShardLayout, StreamLayout

runner = CliRunner()
SHARDS = tuple(ShardLayout(name=f"shard.{at:05d}.mds", size=100, samples=4) for at in range(3))
LAYOUT = DatasetLayout(streams=(StreamLayout(shards=SHARDS),))


@pytest.fixture
def path(tmp_path: Path) -> str:
    scores = np.array([np.nan, 3, 1, 4, 1.5, 9, 2, 6, 5, 3.5, 8, 7], np.float32)
    write_scores(
        tmp_path / "scores.parquet",
        LAYOUT,
        scores,
        labels=np.arange(12) % 3,
        keys=[f"key{at}" for at in range(12)],
        provenance={"method": "Reference(folds=2)", "seeds": "0", "config": "run_name: x\n"},
    )
    return str(tmp_path / "scores.parquet")


def test_scores_as_json(path: str) -> None:
    result = runner.invoke(app, ["inspect", path, "--json", "--number", "2"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["kind"], found["samples"], found["unknown"]) == ("scores", 12, 1)
    assert found["quantiles"]["0.5"] == 4
    assert found["provenance"]["config"] == "run_name: x\n"
    assert [one["samples"] for one in found["classes"]] == [4, 4, 4]
    assert found["classes"][0]["mean"] == pytest.approx((4 + 2 + 3.5) / 3)
    names = ("sample_id", "shard", "position", "key", "label", "score")
    assert [tuple(one[name] for name in names) for one in found["highest"]] == [
        (5, "shard.00001.mds", 1, "key5", 2, 9.0),
        (10, "shard.00002.mds", 2, "key10", 1, 8.0),
    ]
    assert [one["sample_id"] for one in found["lowest"]] == [2, 4]


def test_scores_as_tables(path: str) -> None:
    result = runner.invoke(app, ["inspect", path])
    assert result.exit_code == 0, result.output
    for words in ("Reference(folds=2)", "12, 1 without a score", "quantile 95%", "likely wrong labels", "key10"):
        assert words in result.output


def test_scores_of_nothing_known(tmp_path: Path) -> None:
    write_scores(tmp_path / "none.parquet", LAYOUT, np.full(12, np.nan), provenance={})
    result = runner.invoke(app, ["inspect", str(tmp_path / "none.parquet")])
    assert result.exit_code == 0, result.output
    assert "12, 12 without a score" in result.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["."],
            ("TED(prune_ratio=0.5)", "finished: 6 of 6 epochs", "newly pruned", "most contested"),
        ),
        (["skip_lists/ep0001.parquet"], ("skip-list of epoch 1: TED", "6 of 12 (50.0%)", "shard.00000.mds")),
        (["manifest.parquet"], ("manifest: TED", "highest scores")),
        (["running_scores.parquet"], ("running scores after epoch 5", "12")),
        (["skip_lists/ep0001.parquet", "."], ("a skip-list and a run", "overlap, both / any")),
    ],
)
def test_the_files_of_a_run_as_tables(arguments: list[str], words: tuple[str, ...], tmp_path: Path) -> None:
    make_run(tmp_path, LAYOUT)
    paths = [str(tmp_path / name) for name in arguments]
    result = runner.invoke(app, ["inspect", *paths])
    assert result.exit_code == 0, result.output
    for word in words:
        assert word in result.output
    as_json = runner.invoke(app, ["inspect", *paths, "--json"])
    assert json.loads(as_json.stdout)["kind"]


def test_names_are_no_markup(tmp_path: Path) -> None:
    make_run(tmp_path, LAYOUT, name="[red]run[/]")
    result = runner.invoke(app, ["inspect", str(tmp_path)])
    assert "[red]run[/]" in result.output


def test_the_data_and_the_reference_of_a_runs_config(path: str, tmp_path: Path) -> None:
    make_run(tmp_path / "run", LAYOUT)
    config = f"data:\n  path: {tmp_path}/gone\npruning:\n  method: learnability\n  reference: {path}\n"
    (tmp_path / "run/config.yaml").write_text(config)
    found = json.loads(runner.invoke(app, ["inspect", str(tmp_path / "run"), "--number", "2", "--json"]).stdout)
    assert [one["key"] for one in found["likely_wrong"]] == ["key5", "key10"]
    assert f"{tmp_path}/gone holds neither" in found["notes"][0]
    tables = runner.invoke(app, ["inspect", str(tmp_path / "run")])
    assert "likely wrong labels" in tables.output
    (tmp_path / "scores.parquet").unlink()
    gone = runner.invoke(app, ["inspect", str(tmp_path / "run")])
    assert "The reference scores could not be read" in gone.output


def test_what_cannot_be_inspected_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other.parquet").write_bytes(b"x")
    for name, words in (("other.parquet", "is no Parquet file"), ("no.parquet", "neither file nor folder")):
        result = runner.invoke(app, ["inspect", str(tmp_path / name)])
        assert (result.exit_code, result.output[:7]) == (1, "Error: ")
        assert words in " ".join(result.output.split())


def test_all_methods_are_listed() -> None:
    found = entries()
    assert found.keys() == {*METHODS, *STATIC_METHODS, "reference"}
    result = runner.invoke(app, ["methods"])
    assert result.exit_code == 0
    for entry in found.values():
        assert entry.name in result.output
        assert entry.line
    assert (found["tdds"].cost, found["el2n"].cost) == ("a pass every epoch", "one pass")
    assert (found["reference"].cost, found["forgetting"].cost) == ("surrogate per fold", "no extra pass")
    assert found["craig"].needs == ("labels", "layer", "count")
    assert found["learnability"].needs == ("reference",)
    assert (found["ifd"].needs, found["reference_loss"].needs) == (("tokens",), ())
    assert found["importance_sampling"].needs == ("layer", "weights")
    assert (found["forgetting"].measures, found["random"].measures) == ("Correct", "")


@pytest.mark.parametrize("name", [*METHODS, *STATIC_METHODS, "reference"])
def test_a_method_shows_its_settings(name: str) -> None:
    result = runner.invoke(app, ["methods", name])
    assert result.exit_code == 0, result.output
    entry = entries()[name]
    for setting in fields(entry.cls):
        assert setting.name in result.output
    if name in STATIC_METHODS:
        assert entry.card is not None
    if entry.card is not None:
        assert f"card: {entry.card}" in result.output


def test_a_name_that_is_none_is_refused() -> None:
    result = runner.invoke(app, ["methods", "gran"])
    assert result.exit_code == 1
    assert "no method 'gran'; did you mean grand?" in result.output


def test_help_of_the_commands_needs_no_heavy_import() -> None:
    code = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from ted_stream.cli.commands import app\n"
        "for command in ('score', 'inspect', 'report', 'methods'):\n"
        "    assert CliRunner().invoke(app, [command, '--help']).exit_code == 0\n"
        "heavy = {'torch', 'composer', 'streaming', 'transformers', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
