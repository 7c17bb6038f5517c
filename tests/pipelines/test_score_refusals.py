"""What ``ted-stream score`` refuses, in one line and before it trains."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from scoring import QUICKSTART, SMALL, Command, command_on, prepared_pairs, score_text
from typer.testing import CliRunner, Result

from ted_stream.cli.commands import app
from ted_stream.engine import run_folder
from ted_stream.export import read_scores


@pytest.fixture
def score(digits: Path, tmp_path: Path) -> Command:
    return command_on(digits, tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((None,), "no method; set method=NAME, one of aum, cd, craig"),
        (("el2",), "method: no 'el2'; did you mean el2n?"),
        (("el2n", "gradient=full"), "gradient: el2n has no such setting, it has none; it is one of grand."),
        (("grand", "steps=3"), "steps: grand has no such setting, it has gradient; it is one of deepfool."),
        (("grand", "gradient=all"), "method=grand: gradient is 'all', but it must be one of 'last_layer', 'full'."),
        (("deepfool", "steps=many"), "steps is 'many', expected a whole number such as 8."),
        (("el2n", "prune_ration=0.5"), "no setting prune_ration; did you mean prune_ratio?"),
        (("el2n", "modle.name=gpt"), "no setting modle; did you mean model?"),
        (("el2n", "prune_ratio=1.5"), "prune_ratio is 1.5, but it must lie in [0, 1): it is the fraction to prune"),
        (("el2n", "prune_ratio=0.5", "cutoff=1"), "cutoff is 1.0, but it must lie in [0, 1)"),
        (("el2n", "prune_ratio=0.5", "strata=-1"), "strata is -1, but it must lie in [0, inf)"),
        (("el2n", "prune_ratio=0.5", "balance=eqal"), "balance: no 'eqal'; did you mean equal?"),
        (("el2n", "balance=equal", "cutoff=0.1"), "balance=equal, cutoff=0.1 have no effect without prune_ratio"),
        (("craig",), "craig chooses a set of a given size: set prune_ratio"),
        (("craig", "prune_ratio=0.5", "strata=5"), "strata=5 has no effect with craig, which chooses the set itself"),
        (("el2n", "runs=0"), "runs is 0, but it must lie in [1, inf)"),
        (
            ("margin", "runs=3"),
            "runs is 3, but scores of margin are those of one surrogate; set runs=1, or take one of",
        ),
        (("reference", "folds=2", "holdout=0.2"), "folds and holdout are given, but each is another way"),
        (("reference", "folds=1"), "folds is 1, but it must lie in [2, inf)"),
        (("reference", "holdout=1"), "holdout is 1.0, but it must lie in (0, 1)"),
        (("reference", "holdout=0.2", "prune_ratio=0.5"), "set folds=2 instead of holdout, or leave out prune_ratio"),
        (("reference", "holdout=0.0001"), "leaves a model with 0 of 1437 samples to train on"),
        (("reference", "holdout=0.9999"), "leaves a model with 1437 of 1437 samples to train on"),
        (("reference", "folds=100000"), "folds is 100000, but it must lie in [2, 1437]: the dataset has 1437 samples"),
        (("reference", "prune_ratio=0.5", "cutoff=0.1"), "cutoff=0.1 has no meaning with reference"),
        (("aum", "prune_ratio=0.5", "strata=5"), "strata=5 has no meaning with aum"),
        (("reference_loss", "keep=lowest", "prune_ratio=0.5", "cutoff=0.1"), "cutoff=0.1 has no meaning with referenc"),
        (("ifd",), "ifd compares answers with and without their prompts, but"),
        (("forgetting", "train=false"), "train=false leaves out the training by which forgetting scores; set train="),
        (("tdds", "train=false"), "train=false leaves out the training by which tdds scores; set train=true, or take"),
        (
            ("reference", "train=false"),
            "by which reference scores; set train=true, or set checkpoint= to give it a mod",
        ),
        (("uniform", "train=false"), "train=false has no effect with uniform, which trains nothing"),
        (("el2n", "pruning.method=random"), "pruning.method is random, but what scores samples is trained on all"),
        (("el2n", "data.skip_list=a.parquet"), "data.skip_list is a.parquet, but all samples are scored"),
        (("el2n", "load_path=a.pt"), "load_path is a.pt; a scoring run goes on from its own folder"),
        (("el2n", "folder=s3://bucket/run"), "folder is s3://bucket/run, but the passes of el2n write columns"),
        (("el2n", "fsdp=true"), "fsdp shards the model, but the passes of el2n need a whole one"),
        (("el2n", "precision=amp_fp8"), "precision: no 'amp_fp8'; did you mean amp_fp16?"),
        (("el2n", "eval_interval=100sp"), "eval_interval: '100sp' is no time here"),
        (("tdds", "epochs=30"), "method: TDDS has differences of 2 pairs of epochs, but epochs=30 asks for 29"),
        (("dual", "window=9", "epochs=9"), "max_duration is 3ep, after which no sample has a score of DUAL(epochs=9"),
        (("el2n", "data.augment=random_resized_crop"), "data.augment: random_resized_crop is not for"),
        (("reference", "checkpoint=none.pt"), "There is no file 'none.pt'"),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:.*has no effect")
def test_refused_before_training(arguments, message: str, score: Command, tmp_path: Path) -> None:
    method, *overrides = arguments
    result = score(method, *overrides)
    assert result.exit_code == 1
    told = " ".join(result.output.split())
    assert told.startswith("Error: ")
    assert message in told
    assert not (tmp_path / "run").exists()


@pytest.mark.long
def test_a_folder_in_use(score: Command, tmp_path: Path) -> None:
    assert score("uniform", "seed=3").exit_code == 0
    again = score("uniform")
    assert again.exit_code == 1
    told = " ".join(again.output.split())
    assert "holds an earlier run (config.yaml, scores.parquet, score.json, asked.json); set overwrite=true" in told
    (tmp_path / "run" / "notes.txt").write_text("mine")
    assert score("uniform", "overwrite=true").exit_code == 0
    assert (tmp_path / "run" / "notes.txt").exists()
    assert json.loads((tmp_path / "run" / "score.json").read_text())["kept"] is None


@pytest.mark.long
def test_goes_on_with_what_was_begun_alone(score: Command, tmp_path: Path) -> None:
    assert score("uniform", "keep_vectors=true").exit_code == 0
    other = score("el2n", "autoresume=true", "save_interval=1ep")
    assert other.exit_code == 1
    told = " ".join(other.output.split())
    assert "method is EL2N(), but the scoring run in" in told
    assert "was begun with Uniform()" in told


@pytest.mark.long
def test_goes_on_with_the_same_surrogates_alone(score: Command, tmp_path: Path) -> None:
    """Also when it had come to its end: other folds would be scored by models that were trained on them."""
    common = ["save_interval=1ep", "max_duration=1ep"]
    assert score("reference", "folds=2", *common).exit_code == 0
    for name, override in (("method", "folds=3"), ("seeds", "seed=9"), ("optimizer", "optimizer.lr=0.01")):
        given = {"folds": "folds=2", override.partition("=")[0]: override}
        other = score("reference", *given.values(), *common, "autoresume=true")
        assert other.exit_code == 1
        told = " ".join(other.output.split())
        assert f"{name} is " in told, told
        assert "was begun with" in told
    before = read_scores(tmp_path / "run" / "scores.parquet").scores
    again = score("reference", "folds=2", *common, "autoresume=true")
    assert again.exit_code == 0, again.output
    assert read_scores(tmp_path / "run" / "scores.parquet").scores.tolist() == before.tolist()


@pytest.mark.long
def test_a_finished_run_leaves_no_subset_of_another(score: Command, tmp_path: Path) -> None:
    assert score("uniform", "prune_ratio=0.5").exit_code == 0
    assert (tmp_path / "run" / "skip_list.parquet").exists()
    assert score("uniform", "autoresume=true", "save_interval=1ep").exit_code == 0
    assert not (tmp_path / "run" / "skip_list.parquet").exists()


@pytest.mark.long
def test_training_and_scoring_keep_each_other_out_of_a_folder(
    score: Command, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ted_stream.pipelines.training import loop_host, surrogates

    short = [*SMALL, f"data.path={digits}", f"folder={tmp_path / 'run'}", "trainer=loop", "overwrite=true"]

    def train() -> Result:
        return CliRunner().invoke(app, ["train", QUICKSTART, *short])

    for owner, name, begin, other, what in (
        (surrogates.Surrogate, "tell", lambda: score("uniform"), train, "ted-stream score"),
        (loop_host.Host, "fit", train, lambda: score("uniform", "overwrite=true"), "ted-stream train"),
    ):
        told: list[tuple[int, str]] = []
        real = getattr(owner, name)

        def meanwhile(self: object, real: Any = real, other: Any = other, told: Any = told) -> object:
            refused = other()
            told.append((refused.exit_code, " ".join(refused.output.split())))
            return real(self)

        with monkeypatch.context() as patched:
            patched.setattr(owner, name, meanwhile)
            begun = begin()
        assert begun.exit_code == 0, begun.output
        ((code, message),) = told
        assert code == 1
        assert f"is in use by another run of this process ({what})" in message


@pytest.mark.long
def test_a_folder_where_another_job_scores_is_refused(
    score: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_folder, "_ORPHANS", 0.1)
    code = (
        "import sys; from ted_stream.engine.run_folder import RunLock; lock = RunLock(sys.argv[1], what='a test'); "
        "lock.acquire(); print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "run")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        refused = score("uniform")
        other.kill()
    assert refused.exit_code == 1
    message = " ".join(refused.output.split())
    assert f"in use by a job that is at work (a test, process {other.pid} on " in message
    assert not (tmp_path / "run" / "config.yaml").exists()


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared_pairs(tmp_path_factory.mktemp("text"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method=el2n", "prune_ratio=0.5", "balance=equal"], "balance=equal shares by class, but"),
        (["method=craig", "prune_ratio=0.5"], "craig looks at classes, but"),
        (["method=deepfool"], "method: DeepFool moves inputs, but the batch's first tensor is of torch.int64"),
        (["method=tdds", "window=2"], "window is 2 of epochs=30"),
        (["method=tdds", "epochs=3", "window=3"], "method: TDDS needs logits (B, C), one prediction per sample."),
    ],
    ids=str,
)
def test_what_text_does_not_have(overrides: list[str], message: str, text: Path, tmp_path: Path) -> None:
    result = score_text(text, tmp_path / "run", *overrides)
    assert result.exit_code == 1
    assert message in " ".join(result.output.split())
    assert not (tmp_path / "run").exists()


@pytest.mark.long
@pytest.mark.parametrize("method", ["el2n", "grand", "entropy", "forgetting", "reference"])
def test_text_is_scored(method: str, text: Path, tmp_path: Path) -> None:
    result = score_text(text, tmp_path / "run", f"method={method}", "prune_ratio=0.5")
    assert result.exit_code == 0, result.output
    assert "16 (50.0%)" in result.output
