"""``ted-stream analyse``: the paper's analyses of runs of both trainers, beside what is computed by hand."""

import io
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from streaming import StreamingDataset
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from typer.testing import CliRunner, Result

from ted_stream.cli.commands import app
from ted_stream.pipelines.analysis.analyse import FIGURES, analyse
from ted_stream.pipelines.analysis.evaluation import Evaluation
from ted_stream.pipelines.analysis.runs import read_run
from ted_stream.pipelines.corpora.instructions import prepare_instructions
from ted_stream.pipelines.corpora.prepared import read_description
from ted_stream.pipelines.training.networks import convnet
from ted_stream.pipelines.training.settings import ConfigError, load_settings
from ted_stream.pipelines.training.train import train
from ted_stream.skip_list import read_skip_list, write_skip_list

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
GPT = QUICKSTART.with_name("gsm8k_cpu.yaml")
N = 1437
SMALL = [
    *("max_duration=4ep", "data.num_workers=0", "model.channels=[4, 8]", "save_interval=1ep", "eval_interval=4ep"),
    *("overwrite=false", "trainer=loop", "pruning.method=ted"),
]
Train = Callable[..., Path]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def trained(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Train:
    """A function that trains with overrides, once for each, and gives a copy of the run folder."""
    root = tmp_path_factory.mktemp("trained")

    def run(*overrides: str) -> Path:
        folder = root / str(abs(hash(overrides)))
        if not folder.exists():
            train(load_settings(QUICKSTART, [*SMALL, f"data.path={digits}", f"folder={folder}", *overrides]))
        copy = Path(root / f"copy{len(list(root.iterdir()))}")
        shutil.copytree(folder, copy, symlinks=True)
        return copy

    return run


def command(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["analyse", *map(str, arguments)])


def numbers(out: Path) -> dict[str, Any]:
    return json.loads((out / "analysis.json").read_text())


# By hand -----------------------------------------------------------------------------------------------------------


class ByHand:
    """Digits and the small network, without the library's loaders, transforms, passes or tasks."""

    def __init__(self, data: Path) -> None:
        description = read_description(str(data))
        self.mean, self.std = description.mean[0], description.std[0]
        self.network = convnet(classes=10, in_channels=1, channels=[4, 8])

    def split(self, data: Path, name: str) -> tuple[Tensor, Tensor]:
        samples = StreamingDataset(local=str(data / name), batch_size=1)
        rows = [samples[at] for at in range(samples.size)]
        images = torch.tensor(np.stack([row["image"] for row in rows]), dtype=torch.float32)
        return ((images - self.mean) / self.std)[:, None], torch.tensor([row["label"] for row in rows])

    def losses(self, weights: Mapping[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        self.network.load_state_dict(weights)
        return cross_entropy(self.network.eval()(x), y, reduction="none")

    def gradient(self, factors: Tensor, weights: Mapping[str, Tensor], x: Tensor, y: Tensor) -> np.ndarray:
        """In float64, of all samples at once."""
        self.network.double()
        try:
            losses = self.losses(weights, x.double(), y)
            found = torch.autograd.grad(losses @ factors.double(), list(self.network.parameters()))
            return torch.cat([part.flatten() for part in found]).numpy()
        finally:
            self.network.float()


def checkpoint(folder: Path, after: int) -> dict[str, Tensor]:
    (path,) = (folder / "checkpoints").glob(f"ep{after}-ba*.pt")
    if "rank0" not in path.name:
        return torch.load(path, weights_only=True)["network"]
    state = torch.load(path, weights_only=False)["state"]["model"]
    return {name.partition(".")[2]: value for name, value in state.items()}


def kept(folder: Path, epoch: int) -> np.ndarray:
    return read_skip_list(folder / f"skip_lists/ep{epoch:04d}.parquet").keep_mask()


@pytest.mark.long
@pytest.mark.parametrize("trainer", ["loop", "composer"])
def test_the_command_beside_what_is_computed_by_hand(trainer: str, trained: Train, digits: Path) -> None:
    folder = trained(f"trainer={trainer}")
    result = command(folder, "--points", 3)
    assert result.exit_code == 0, result.output
    out = folder / "analysis"
    assert {path.name for path in out.iterdir()} == {"analysis.json", *FIGURES}
    for name in FIGURES:
        with Image.open(io.BytesIO((out / name).read_bytes())) as image:
            image.verify()
            assert (image.format, min(image.size) > 300) == ("PNG", True)
    (run,) = numbers(out)["runs"]
    assert (run["method"], run["samples"], run["epochs"], run["notes"]) == ("ted", N, 4, [])

    by_hand = ByHand(digits)
    x, y = by_hand.split(digits, "train")
    lists = [kept(folder, epoch) for epoch in range(4)]
    times = np.sum(lists, axis=0)
    assert [row["after"] for row in run["losses"]] == [0, 1, 2, 3, 4]
    for row in run["losses"][1:]:
        after = row["after"]
        with torch.no_grad():
            losses = by_hand.losses(checkpoint(folder, after), x, y).double().numpy()
        keep = lists[after - 1]
        assert row["kept"] == keep.sum()
        assert row["loss"] == pytest.approx(losses.mean(), rel=1e-5)
        assert row["kept_loss"] == pytest.approx(losses[keep].mean(), rel=1e-5)
        if keep.all():
            assert row["pruned_loss"] is None
        else:
            assert row["pruned_loss"] == pytest.approx(losses[~keep].mean(), rel=1e-5)
        share = run["least_kept"]["samples"] / N
        parts = share * row["least_kept_loss"] + (1 - share) * row["most_kept_loss"]
        assert parts == pytest.approx(row["loss"], rel=1e-5)
    smallest = min(keep.sum() for keep in lists)
    assert run["least_kept"]["samples"] == N - smallest
    assert run["least_kept"]["mean_times_kept"] == pytest.approx(np.sort(times)[: N - smallest].mean())
    assert run["least_kept"]["mean"] == run["losses"][-1]["least_kept_loss"]
    assert run["least_kept"]["quantiles"] == sorted(run["least_kept"]["quantiles"])

    assert [row["after"] for row in run["gradients"]] == [e for e in range(4) if not lists[e].all()]
    for row in run["gradients"]:
        keep = lists[row["after"]]
        weights = checkpoint(folder, row["after"])
        whole = by_hand.gradient(torch.ones(N) / N, weights, x, y)
        part = by_hand.gradient(torch.from_numpy(keep) / keep.sum(), weights, x, y)
        norms = np.linalg.norm(part), np.linalg.norm(whole)
        assert row["pearson"] == pytest.approx(np.corrcoef(part, whole)[0, 1], abs=1e-5)
        assert row["cosine"] == pytest.approx(part @ whole / norms[0] / norms[1], abs=1e-5)
        assert row["norm_ratio"] == pytest.approx(norms[0] / norms[1], rel=1e-4)
        assert row["weighted_pearson"] is None
        assert row["random_pearson"] <= 1

    points = run["interpolation"]
    assert [point["alpha"] for point in points] == [0, 0.5, 1]
    assert run["interpolated"] == [0, 4]
    assert (points[0]["loss"], points[2]["loss"]) == (run["losses"][0]["loss"], run["losses"][-1]["loss"])
    told = json.loads((folder / "result.json").read_text())["metrics"]
    assert points[2]["test"] == pytest.approx(told, rel=1e-5)
    ends = Evaluation(read_run(folder)).weights(0), checkpoint(folder, 4)
    between = {name: ((ends[0][name].double() + ends[1][name].double()) / 2) for name in ends[0]}
    with torch.no_grad():
        halfway = by_hand.losses({name: value.to(ends[1][name]) for name, value in between.items()}, x, y)
    assert points[1]["loss"] == pytest.approx(float(halfway.double().mean()), rel=1e-4)


@pytest.mark.long
@pytest.mark.parametrize("trainer", ["loop", "composer"])
def test_the_first_weights_are_made_again(trainer: str, trained: Train) -> None:
    """A learning rate of nearly zero leaves them what they were, but for statistics."""
    folder = trained(f"trainer={trainer}", "optimizer.lr=1e-30", "optimizer.weight_decay=0", "seed=3")
    last = checkpoint(folder, 4)
    first = Evaluation(read_run(folder)).weights(0)
    for name, value in last.items():
        if "running" not in name and "num_batches" not in name:
            torch.testing.assert_close(value, first[name], rtol=0, atol=1e-25, msg=name)


@pytest.mark.long
def test_all_kept_has_a_cosine_of_one(trained: Train) -> None:
    evaluation = Evaluation(read_run(trained()))
    ones = np.ones(N)
    gradients = evaluation.look(evaluation.weights(2), {"all": ones, "kept": 0.5 * ones}).gradients
    torch.testing.assert_close(gradients["kept"], gradients["all"] / 2)


# Other runs --------------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_several_runs_in_the_same_figures(trained: Train, tmp_path: Path) -> None:
    ted, random, whole = trained(), trained("pruning.method=random"), trained("pruning.method=none")
    result = command(
        ted, "--with", random, "--with", whole, "--points", 2, "--every", 3, "--out", tmp_path / "out", "--start", 1
    )
    assert result.exit_code == 0, result.output
    runs = numbers(tmp_path / "out")["runs"]
    assert [run["method"] for run in runs] == ["ted", "random", "none"]
    assert [run["name"] for run in runs] == [folder.name for folder in (ted, random, whole)]
    for run in runs:
        assert [row["after"] for row in run["losses"]] == [0, 3, 4]
        assert run["interpolated"] == [1, 4]
    assert runs[2]["gradients"] == []
    assert runs[2]["least_kept"] is None
    assert {row["pruned_loss"] for row in runs[2]["losses"]} == {None}
    assert "trained on all data in every epoch" in runs[2]["notes"][0]
    assert "note: " in result.output
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"analysis.json", *FIGURES}


@pytest.mark.long
def test_weights_of_samples(trained: Train) -> None:
    """What weighs samples so that the gradient stays that of all data, correlates more with it if they weigh."""
    folder = trained("pruning.method=infobatch", "pruning.prune_ratio=0.5")
    (run,) = analyse([folder], parts=["gradients"]).runs
    assert run.gradients
    assert run.losses == run.interpolation == ()
    for row in run.gradients:
        assert row.weighted_pearson is not None
        assert row.weighted_cosine is not None
        assert row.pearson is not None
        assert row.weighted_pearson > row.pearson - 0.05
    assert {path.name for path in (folder / "analysis").iterdir()} == {"analysis.json", "gradients.png"}


@pytest.mark.long
@pytest.mark.parametrize("how", ["method", "data"])
def test_a_fixed_subset(how: str, trained: Train, tmp_path: Path) -> None:
    """The same samples are pruned from the first epoch on, as in the paper's Figure 2."""
    path = tmp_path / "list.parquet"
    write_skip_list(read_skip_list(trained() / "skip_lists/ep0001.parquet"), path)
    asked = ["pruning.method=fixed_subset", f"pruning.skip_list={path}", "pruning.prune_ratio=null"]
    folder = trained(*(asked if how == "method" else ["pruning.method=none", f"data.skip_list={path}"]))
    (run,) = analyse([folder], points=2).runs
    keep = read_skip_list(path).keep_mask()
    assert run.method == ("fixed_subset" if how == "method" else "fixed subset")
    assert {row.kept for row in run.losses} == {keep.sum()}
    for row in run.losses:
        assert row.pruned_loss == row.least_kept_loss is not None
        assert row.kept_loss == row.most_kept_loss
    assert [row.after for row in run.gradients] == [0, 1, 2, 3]


@pytest.mark.long
def test_text(tmp_path: Path) -> None:
    rows = [{"q": f"what is {a} plus {b}", "a": str(a + b)} for a in range(8) for b in range(8)]
    for split, part in (("train", rows[:48]), ("test", rows[48:])):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    prepare_instructions(
        tmp_path / "data",
        tmp_path / "train.jsonl",
        test=tmp_path / "test.jsonl",
        prompt_field="q",
        response_field="a",
        train_tokenizer_size=300,
        max_length=64,
    )
    overrides = [
        *(f"data.path={tmp_path / 'data'}", f"folder={tmp_path / 'run'}", "trainer=loop", "save_interval=1ep"),
        *("model.n_layer=1", "model.n_head=2", "model.n_embd=8", "max_duration=3ep", "data.eval_batch_size=10"),
        *("progress_bar=false", "scheduler.warmup=null"),
    ]
    train(load_settings(GPT, overrides))
    (run,) = analyse([tmp_path / "run"], points=2).runs
    told = json.loads((tmp_path / "run" / "result.json").read_text())["metrics"]
    assert run.interpolation[-1].test == pytest.approx(told, rel=1e-5)
    assert [row.after for row in run.losses] == [0, 1, 2, 3]
    assert [row.after for row in run.gradients] == [1, 2]

    evaluation = Evaluation(read_run(tmp_path / "run"))
    weights = evaluation.weights(3)
    found = evaluation.look(weights).losses
    samples = StreamingDataset(local=str(tmp_path / "data" / "train"), batch_size=1)
    network: Any = evaluation._task.network.eval()
    for at in (0, 17, 47):
        ids, labels = (torch.tensor(samples[at][name].astype(np.int64))[None] for name in ("input_ids", "labels"))
        with torch.no_grad():
            assert found[at] == pytest.approx(float(network(input_ids=ids, labels=labels).loss), rel=1e-4)


# Refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_what_there_is_of_few_checkpoints(trained: Train) -> None:
    folder = trained("save_interval=3ep")
    result = command(folder, "--points", 2)
    assert result.exit_code == 0, result.output
    (run,) = numbers(folder / "analysis")["runs"]
    assert [row["after"] for row in run["losses"]] == [0, 3, 4]
    (note,) = run["notes"]
    assert note.startswith("checkpoints after 2 of 4 epochs (save_interval is 3ep, the last after epoch 4)")
    assert "train with save_interval=1ep for all" in " ".join(result.output.split())


@pytest.mark.long
def test_checkpoints_within_epochs_are_left_out(trained: Train) -> None:
    folder = trained("save_interval=10ba", "pruning.method=none")
    (run,) = analyse([folder], points=2, parts=["losses"]).runs
    assert [row.after for row in run.losses] == [0, 4]
    assert run.notes[0] == (
        "checkpoints in the middle of an epoch are left out: ep1-ba30.pt, ep2-ba50.pt, ep3-ba70.pt."
    )


def refused(result: Result, *words: str) -> None:
    assert result.exit_code == 1
    told = " ".join(result.output.split())
    assert told.startswith("Error: ")
    for word in words:
        assert word in told, told


def test_refused(trained: Train, tmp_path: Path) -> None:
    folder = trained()
    for arguments, words in {
        (tmp_path,): ("holds no config.yaml, so it is no run folder of `ted-stream train`",),
        ("s3://bucket/run",): ("s3://bucket/run is remote", "copy it to a folder"),
        (folder, "--with", folder): ("is given twice; name every run once",),
        (folder, "--only", "loses"): ("only: no 'loses'; did you mean losses?",),
        (folder, "--start", "4"): ("start is 4, but before the last one (after epoch 4)", "0, 1, 2, 3; set --start"),
        (folder, "model.name=gpt"): ("the override 'model.name=gpt' is not of the section data",),
        (folder, f"data.path={tmp_path / 'none'}"): (str(tmp_path / "none"),),
    }.items():
        refused(command(*arguments), *words)
        assert not (folder / "analysis").exists()
    for setting in ({"points": 1}, {"every": 0}, {"start": -1}):
        ((name, value),) = setting.items()
        with pytest.raises(ConfigError, match=f"{name} is {value}, expected "):
            analyse([folder], **setting)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match="no run to analyse"):
        analyse([])


@pytest.mark.long
def test_no_checkpoints(trained: Train) -> None:
    refused(command(trained("save_interval=10ba", "trainer=composer")), "save_interval is 10ba", "save_interval=1ep")
    refused(command(trained("save_interval=null")), "save_interval is null", "train it again with save_interval=1ep")


@pytest.mark.long
def test_no_pruning_has_no_gradients_to_compare(trained: Train) -> None:
    result = command(trained("pruning.method=none"), "--only", "gradients")
    refused(result, "pruning.method is none", "name a run with a pruning method, or with data.skip_list")


def test_a_launcher(trained: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    refused(command(trained()), "one of 2 processes", "run it without a launcher")


@pytest.mark.long
def test_what_was_changed_or_is_gone(trained: Train) -> None:
    folder = trained()
    (folder / "skip_lists/ep0002.parquet").unlink()
    refused(command(folder), "no skip-list at", "ep0002.parquet")
    folder = trained()
    shutil.copy(folder / "skip_lists/ep0001.parquet", folder / "skip_lists/ep0002.parquet")
    refused(command(folder), "ep0002.parquet")
    folder = trained()
    (folder / "run.json").unlink()
    refused(command(folder), "holds no run.json, though its method is ted")
    folder = trained()
    run = json.loads((folder / "run.json").read_text())
    run["epochs"].pop(2)
    (folder / "run.json").write_text(json.dumps(run))
    refused(command(folder, "--only", "losses"), "says nothing of epoch 2, though there are weights after 3 epochs")
    folder = trained()
    (path,) = (folder / "checkpoints").glob("ep3-*")
    path.write_bytes(path.read_bytes()[:1000])
    refused(command(folder), f"{path.name} cannot be read as a checkpoint", "copy it again")
    folder = trained()
    config = folder / "config.yaml"
    text = config.read_text()
    config.write_text(text.replace("  - 8\n", "  - 6\n"))
    refused(command(folder), "ep4-", "of shape (8, 4, 3, 3)", "restore the config that it was trained with")
    config.write_text(text.replace("  - 8\n", "  - 8\n  - 8\n"))
    refused(command(folder), "is of another network than the run's config.yaml says")


@pytest.mark.long
def test_a_pickle_is_not_executed(trained: Train, tmp_path: Path) -> None:
    folder = trained("trainer=composer")

    class Evil:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "executed",)

    (path,) = (folder / "checkpoints").glob("ep3-*")
    torch.save({"state": Evil()}, path)
    refused(command(folder), f"{path.name} cannot be read as a checkpoint")
    assert not (tmp_path / "executed").exists()


def test_scoring_runs(trained: Train) -> None:
    folder = trained()
    (folder / "asked.json").write_text("{}")
    refused(command(folder), "is of `ted-stream score`")


@pytest.mark.long
def test_runs_on_other_data(trained: Train, digits: Path, tmp_path: Path) -> None:
    folder, other = trained(), tmp_path / "other"
    shutil.copytree(digits, other)
    shutil.rmtree(other / "train")
    shutil.copytree(digits / "test", other / "train")
    description = json.loads((other / "dataset.json").read_text())
    description["samples"]["train"] = description["samples"]["test"]
    (other / "dataset.json").write_text(json.dumps(description))
    mine = trained("pruning.method=none")
    config = mine / "config.yaml"
    config.write_text(config.read_text().replace(str(digits), str(other)))
    refused(command(folder, "--with", mine), "was trained on dataset", "analyse them apart")


@pytest.mark.long
def test_an_earlier_analysis(trained: Train) -> None:
    folder = trained()
    assert command(folder, "--points", 2).exit_code == 0
    before = numbers(folder / "analysis")
    refused(command(folder), "holds an earlier analysis (analysis.json, losses.png", "--overwrite", "--out")
    assert numbers(folder / "analysis") == before
    result = command(folder, "--overwrite", "--only", "losses")
    assert result.exit_code == 0, result.output
    names = {path.name for path in (folder / "analysis").iterdir()}
    assert names == {"analysis.json", "losses.png", "least_kept.png"}
    assert numbers(folder / "analysis")["runs"][0]["losses"] == before["runs"][0]["losses"]


@pytest.mark.long
def test_nothing_of_an_analysis_that_failed(trained: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = trained()

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Evaluation, "test", interrupted)
    with pytest.raises(KeyboardInterrupt):
        analyse([folder])
    assert not (folder / "analysis").exists()


@pytest.mark.long
def test_what_is_not_finite(trained: Train) -> None:
    folder = trained()
    (path,) = (folder / "checkpoints").glob("ep4-*")
    state = torch.load(path, weights_only=True)
    for tensor in state["network"].values():
        if tensor.is_floating_point():
            nn.init.constant_(tensor, torch.nan)
    torch.save(state, path)
    assert command(folder, "--points", 2).exit_code == 0
    (run,) = numbers(folder / "analysis")["runs"]
    assert run["losses"][-1]["loss"] is None
    assert run["interpolation"][-1]["loss"] is None
    assert run["interpolation"][0]["loss"] is not None


@pytest.mark.long
def test_the_generators_are_left_alone(trained: Train) -> None:
    folder = trained()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    analyse([folder], points=2)
    assert torch.equal(torch.rand(3), expected)
