"""``ted-stream score``: every registered method, through the command, on digits."""

import json
import shlex
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scoring import METHOD_SETTINGS, Command, command_on
from streaming import StreamingDataset
from typer.testing import CliRunner

from ted_stream.cli.commands import app
from ted_stream.export.scores import Scores, read_scores
from ted_stream.methods.static import STATIC_METHODS, StaticMethod
from ted_stream.pipelines.training import scored_columns
from ted_stream.pipelines.training.reference import SCORERS
from ted_stream.pipelines.training.score_settings import Choice, load_scoring
from ted_stream.pipelines.training.settings import Settings
from ted_stream.skip_list import read_skip_list

N, KEPT = 1437, 432  # of 30 %
LAST_LIST = "run-subset/skip_lists/ep0001.parquet"


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def score(digits: Path, tmp_path: Path) -> Command:
    return command_on(digits, tmp_path)


@pytest.fixture(scope="module")
def labels(digits: Path) -> list[int]:
    data = StreamingDataset(local=str(digits / "train"), batch_size=1)
    return [data[at]["label"] for at in range(N)]


def succeed(score: Command, *args: str, name: str = "run", **options: Any) -> dict[str, Any]:
    result = score(*args, name=name, **options)
    assert result.exit_code == 0, result.output
    folder = next(line for line in result.output.splitlines() if line.startswith("scores: "))
    return json.loads(Path(folder.removeprefix("scores: ")).with_name("score.json").read_text())


def scores_in(folder: Path) -> Scores:
    return read_scores(folder / "scores.parquet")


@pytest.mark.long
@pytest.mark.parametrize("method", [name for name, cls in SCORERS.items() if not getattr(cls, "needs_tokens", False)])
def test_every_method(method: str, score: Command, labels: list[int], tmp_path: Path) -> None:
    found = succeed(score, method, "prune_ratio=0.7")
    scores, skip_list = scores_in(tmp_path / "run"), read_skip_list(tmp_path / "run" / "skip_list.parquet")
    assert (len(scores), found["samples"], found["scored"], found["kept"]) == (N, N, N, KEPT)
    assert np.isfinite(scores.scores).all()
    assert len(np.unique(scores.scores)) > 1
    assert scores.labels is not None
    assert scores.labels.tolist() == labels
    assert scores.provenance["method"] == found["method"]
    assert found["method"].startswith(f"{skip_list.method}(")
    assert "run_name: quickstart" in scores.provenance["config"]
    assert scores.provenance["seeds"] == "0"
    assert scores.fingerprint == skip_list.layout.fingerprint
    assert skip_list.num_kept == KEPT
    kept = skip_list.keep_mask()
    worst, others = scores.scores[kept], scores.scores[~kept]
    if scores.provenance["keeps"] == "highest":
        assert worst.min() >= others.max()
    else:
        assert worst.max() <= others.min()
    assert (skip_list.weights is not None) == found["weighted"] == (method == "craig")
    assert not (tmp_path / "run" / "scoring").exists()
    cls = SCORERS[method]
    if issubclass(cls, StaticMethod) and cls.needs_surrogate:
        assert found["cost"] > 0
        assert 0 <= found["metrics"]["MulticlassAccuracy"] <= 1
    succeed(score, method, "prune_ratio=0.7", name="again")
    again = scores_in(tmp_path / "again")
    assert again.digest == scores.digest
    assert read_skip_list(tmp_path / "again" / "skip_list.parquet").digest == skip_list.digest


def test_names_of_settings_are_told_apart() -> None:
    of_config, choice = ({field.name for field in fields(cls)} for cls in (Settings, Choice))
    assert not of_config & choice
    for cls in SCORERS.values():
        assert not {field.name for field in fields(cls)} & (of_config | choice)
    assert METHOD_SETTINGS.keys() <= STATIC_METHODS.keys()


@pytest.mark.long
@pytest.mark.parametrize("method", ["el2n", "craig"])
def test_the_next_command_trains_on_what_was_chosen(method: str, score: Command, tmp_path: Path) -> None:
    result = score(method, "prune_ratio=0.7", "seed=3")
    command = next(line for line in result.output.splitlines() if line.startswith("next: ted-stream "))
    words = shlex.split(command.removeprefix("next: ted-stream "))
    assert f"folder={tmp_path / 'run-subset'}" in words
    trained = CliRunner().invoke(app, [*words, "trainer=loop"])
    assert trained.exit_code == 0, trained.output
    found = json.loads((tmp_path / "run-subset" / "result.json").read_text())
    assert (found["forwarded"], found["seed"]) == (2 * KEPT, 3)
    if method == "craig":
        chosen, used = (read_skip_list(tmp_path / name) for name in ("run/skip_list.parquet", LAST_LIST))
        assert np.array_equal(used.keep_mask(), chosen.keep_mask())
        assert used.weights is not None
        assert chosen.weights is not None
        np.testing.assert_allclose(used.weights, chosen.weights, rtol=1e-5)


@pytest.mark.long
def test_one_table(score: Command) -> None:
    result = score("grand", "prune_ratio=0.5", "balance=equal", "strata=10", "cutoff=0.1", "gradient=full")
    assert result.exit_code == 0, result.output
    for words in ("GraNd(gradient='full')", "samples scored", "719 (50.0%)", "training", "cost of scoring", "scores:"):
        assert words in result.output


@pytest.mark.long
def test_classes_are_balanced(score: Command, labels: list[int], tmp_path: Path) -> None:
    succeed(score, "el2n", "prune_ratio=0.8", "balance=equal")
    kept = read_skip_list(tmp_path / "run" / "skip_list.parquet").keep_mask()
    counts = np.bincount(np.array(labels)[kept])
    assert counts.max() - counts.min() <= 1
    succeed(score, "aum", "prune_ratio=0.8", "balance=equal", name="aum")
    kept = read_skip_list(tmp_path / "aum" / "skip_list.parquet").keep_mask()
    counts = np.bincount(np.array(labels)[kept])
    assert counts.max() - counts.min() <= 1


@pytest.mark.long
def test_scores_of_several_seeds_are_averaged(score: Command, tmp_path: Path) -> None:
    found = succeed(score, "el2n", "runs=2", name="both")
    assert found["seeds"] == [0, 1]
    for seed in (0, 1):
        succeed(score, "el2n", f"seed={seed}", name=str(seed))
    one, two, both = (scores_in(tmp_path / name).scores for name in ("0", "1", "both"))
    assert not np.array_equal(one, two)
    np.testing.assert_array_equal(both, ((one.astype(np.float64) + two) / 2).astype(np.float32))


@pytest.mark.long
def test_scores_do_not_hang_on_chunks_or_workers(
    score: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    common = ["data.eval_batch_size=45"]
    succeed(score, "el2n", *common)
    succeed(score, "el2n", *common, "data.num_workers=2", "keep_vectors=true", name="workers")
    assert scores_in(tmp_path / "workers").digest == scores_in(tmp_path / "run").digest
    kept = tmp_path / "workers" / "scoring" / "0" / "pass-0002"
    assert np.load(kept / "score.npy").shape == (N,)
    assert len(list(kept.glob("done-*"))) == 32
    monkeypatch.setattr(scored_columns, "CHUNK", 20)
    succeed(score, "el2n", *common, name="chunks")
    np.testing.assert_allclose(
        scores_in(tmp_path / "chunks").scores, scores_in(tmp_path / "run").scores, rtol=1e-4, atol=1e-6
    )


@pytest.mark.long
def test_sixteen_bits_though_the_config_names_composer(score: Command, tmp_path: Path) -> None:
    succeed(score, "el2n", "precision=amp_bf16", "trainer=composer")
    succeed(score, "el2n", name="fp32")
    half, whole = scores_in(tmp_path / "run").scores, scores_in(tmp_path / "fp32").scores
    assert not np.array_equal(half, whole)
    np.testing.assert_allclose(half, whole, atol=0.1)


@pytest.mark.long
def test_what_a_seed_does_not_decide(score: Command, tmp_path: Path) -> None:
    """A method without a surrogate trains nothing."""
    found = succeed(score, "uniform", "prune_ratio=0.5")
    assert (found["training_seconds"], found["seeds"], found["cost"]) == (0, [], None)
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.long
def test_the_config_of_a_run_is_kept(score: Command, tmp_path: Path) -> None:
    succeed(score, "el2n")
    assert load_scoring(tmp_path / "run" / "config.yaml", ["method=el2n"]).settings.max_duration == "2ep"


@pytest.mark.long
def test_lines_of_progress(score: Command) -> None:
    result = score("el2n", "progress_bar=true", "runs=2")
    assert "surrogate 2 of 2: pass after epoch 2: 30 of 32 parts" in result.stderr
