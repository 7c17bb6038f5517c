"""The recipes through Composer and through the plain loop: one set of settings, one result."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from outcomes import outcome, weights_of
from typer.testing import CliRunner

from ted_stream.cli.commands import app
from ted_stream.pipelines.corpora.instructions import prepare_instructions
from ted_stream.pipelines.training.settings import ConfigError, load_settings
from ted_stream.pipelines.training.train import train
from ted_stream.testing.processes import run_to_the_end

ROOT = Path(__file__).parents[2]
QUICKSTART = str(ROOT / "configs" / "quickstart.yaml")
COMMAND = ROOT / "ted_stream" / "cli" / "__main__.py"
KILLED = Path(__file__).with_name("killed_training.py")
SMALL = [
    *("max_duration=3ep", "data.num_workers=0", "model.channels=[8, 16]", "pruning.annealing=0"),
    *("save_interval=3ep", "pruning.method=ted", "pruning.prune_ratio=0.6"),
]
Overrides = Callable[..., list[str]]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def overrides(digits: Path, tmp_path: Path) -> Overrides:
    """A function that makes a small run's overrides, of a name and more overrides."""

    def make(name: str, *more: str) -> list[str]:
        return [*SMALL, f"data.path={digits}", f"folder={tmp_path / name}", *more]

    return make


def torchrun(ranks: int, *command: object) -> None:
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    run_to_the_end([*launcher, *map(str, command)], variables, 300)


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4)


# One result


CASES = {
    "quickstart": [],
    "no pruning": ["pruning.method=none", "data.augment=crop_flip", "scheduler.name=linear"],
    "microbatches and augmentation": [
        "device_train_microbatch_size=24",
        "data.augment=crop_flip",
        "pruning.site=input",
    ],
    "weights of samples": ["pruning.method=importance_sampling", "scheduler.name=cosine", "scheduler.warmup=20ba"],
    "lars": [
        *("optimizer.name=lars", "optimizer.lr=2", "pruning.method=infobatch", "eval_interval=7ba"),
        *("scheduler.name=multistep", "scheduler.milestones=[1ep, 0.8dur]"),
    ],
    "adamw": ["optimizer.name=adamw", "optimizer.lr=0.01", "pruning.progress=samples", "scheduler.name=constant"],
    "channels last": ["model.channels_last=true", "model.label_smoothing=0.1", "data.num_workers=1"],
}


@pytest.mark.quick("quickstart")
@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("ignore:.*has no effect")
def test_composer_and_the_loop_make_the_same_to_the_bit(case: str, overrides: Overrides, tmp_path: Path) -> None:
    for trainer in ("composer", "loop"):
        result = train(load_settings(QUICKSTART, overrides(trainer, f"trainer={trainer}", *CASES[case])))
        assert (result.trainer, result.manifest is None) == (trainer, case == "no pruning")
    found, expected = outcome(tmp_path / "loop"), outcome(tmp_path / "composer")
    assert found == expected


@pytest.mark.long
def test_a_language_model_too(tmp_path: Path) -> None:
    lines = [{"prompt": f"Count to {n}.", "response": " ".join(map(str, range(n + 1)))} for n in range(40)]
    corpus = tmp_path / "train.jsonl"
    corpus.write_text("".join(json.dumps(line) + "\n" for line in lines))
    prepare_instructions(tmp_path / "data", corpus, test_fraction=0.2, train_tokenizer_size=300)
    sizes = ["data.batch_size=8", "model.n_embd=16", "model.n_layer=1", "max_duration=2ep", "scheduler.warmup=2ba"]
    others = [
        "pruning.method=ted",
        "model.dropout=0.1",
        "device_train_microbatch_size=3",
        "progress_bar=false",
        "save_interval=2ep",
    ]
    for trainer in ("composer", "loop"):
        places = [f"data.path={tmp_path / 'data'}", f"folder={tmp_path / trainer}", f"trainer={trainer}"]
        train(load_settings(ROOT / "configs" / "gsm8k_cpu.yaml", [*sizes, *others, *places]))
    found, expected = outcome(tmp_path / "loop"), outcome(tmp_path / "composer")
    assert found == expected
    assert found["metrics"]["LanguageCrossEntropy"] < 6


@pytest.fixture(scope="module")
def on_two_ranks(digits: Path, tmp_path_factory: pytest.TempPathFactory, launch: Callable[..., None]) -> Path:
    """The run on two ranks: through both trainers, and sharded, under Composer's launcher and under torch's."""
    out = tmp_path_factory.mktemp("ranks")
    common = ["train", QUICKSTART, *SMALL, f"data.path={digits}", "device_train_microbatch_size=12"]
    # Rates by which no rounding tips a ReLU, after which sharded weights would be others.
    common.append("pruning.progress=epochs")
    launch(COMMAND, *common, f"folder={out / 'composer'}", ranks=2)
    launch(COMMAND, *common, f"folder={out / 'sharded'}", "trainer=loop", "fsdp=true", ranks=2)
    torchrun(2, COMMAND, *common, f"folder={out / 'loop'}", "trainer=loop")
    return out


@pytest.mark.long
def test_two_ranks(on_two_ranks: Path) -> None:
    expected = outcome(on_two_ranks / "composer")
    assert min(len(expected["digests"]), len({*expected["digests"]})) == 3
    assert outcome(on_two_ranks / "loop") == expected


@pytest.mark.long
def test_sharded_over_two_ranks(on_two_ranks: Path) -> None:
    """But for rounding; test metrics differ by the statistics of BatchNorm, of which there is one set."""
    found, expected = outcome(on_two_ranks / "sharded"), outcome(on_two_ranks / "loop")
    assert found["digests"] == expected["digests"]
    assert_close(weights_of(on_two_ranks / "sharded"), weights_of(on_two_ranks / "loop"))


# Going on


@pytest.mark.long
@pytest.mark.parametrize("method", ["ted", "importance_sampling", "none"])
def test_goes_on_to_the_bit(method: str, overrides: Overrides, tmp_path: Path) -> None:
    """From an epoch's start, its middle, its last batch, and the end; with random augmentation."""
    common = ["trainer=loop", f"pruning.method={method}", "data.augment=crop_flip", "save_interval=5ba"]
    whole = tmp_path / "whole"
    train(load_settings(QUICKSTART, overrides("whole", *common)))
    expected = outcome(whole)
    names = [path.name for path in (whole / "checkpoints").glob("*.pt")]
    assert len(names) > 6
    last = max(names, key=lambda name: int(name.partition("-ba")[2][:-3]))
    for name in ("ep0-ba5.pt", next(name for name in names if name.startswith("ep1")), last):
        part = tmp_path / name
        shutil.copytree(whole, part)
        (part / "result.json").unlink()
        (part / "checkpoints" / "newest").write_text(name)
        train(load_settings(QUICKSTART, overrides(name, *common, "autoresume=true")))
        assert outcome(part) == expected, name


@pytest.mark.long
def test_a_killed_run_on_two_ranks_goes_on(overrides: Overrides, tmp_path: Path) -> None:
    common = ["trainer=loop", "data.augment=crop_flip", "save_interval=4ba", "autoresume=true", "optimizer.name=lars"]
    torchrun(2, KILLED, -1, QUICKSTART, *overrides("lived", *common))
    with pytest.raises(AssertionError, match="exit status"):
        torchrun(2, KILLED, 30, QUICKSTART, *overrides("killed", *common))
    assert not (tmp_path / "killed" / "result.json").exists()
    torchrun(2, KILLED, -1, QUICKSTART, *overrides("killed", *common))
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "lived")


@pytest.mark.long
def test_load_path_names_a_checkpoint(overrides: Overrides, tmp_path: Path) -> None:
    train(load_settings(QUICKSTART, overrides("run", "trainer=loop", "save_interval=1ep")))
    expected = outcome(tmp_path / "run")
    path = next((tmp_path / "run" / "checkpoints").glob("ep1-*.pt"))
    train(load_settings(QUICKSTART, overrides("run", "trainer=loop", "save_interval=1ep", f"load_path={path}")))
    assert outcome(tmp_path / "run") == expected


@pytest.mark.long
def test_neither_trainer_goes_on_with_the_others_run(overrides: Overrides, tmp_path: Path) -> None:
    common = ["max_duration=1ep", "pruning.method=none", "save_interval=1ep"]
    for trainer, other in (("loop", "composer"), ("composer", "loop")):
        train(load_settings(QUICKSTART, overrides(trainer, *common, f"trainer={trainer}")))
        with pytest.raises(ConfigError, match=f"trainer is {other}, but the run in .* was begun with {trainer}"):
            train(load_settings(QUICKSTART, overrides(trainer, *common, f"trainer={other}", "autoresume=true")))
    path = tmp_path / "composer" / "checkpoints" / "latest-rank0.pt"
    with pytest.raises(ConfigError, match=r"latest-rank0\.pt is no checkpoint of format .*set trainer=composer"):
        train(load_settings(QUICKSTART, overrides("other", *common, "trainer=loop", f"load_path={path}")))


# What the loop needs, and what it can do


@pytest.mark.long
def test_the_loop_needs_no_composer(overrides: Overrides) -> None:
    code = (
        "import sys\n"
        "sys.modules['composer'] = None\n"  # as if it were not installed
        "from ted_stream.cli.commands import app\n"
        "app(sys.argv[1:], standalone_mode=False)\n"
        "assert not [name for name in sys.modules if name.startswith('composer.')]\n"
    )
    small = overrides("run", "trainer=loop", "max_duration=2ep", "progress_bar=true")
    command = [sys.executable, "-c", code, "train", QUICKSTART, *small]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "test accuracy" in done.stdout
    assert "epoch 2 of 2:" in done.stderr
    assert [line.split(": ")[0] for line in done.stderr.splitlines() if " kept " in line] == [
        "epoch 0 (1 of 2)",
        "epoch 1 (2 of 2)",
    ]


def test_composer_is_missed_before_training(overrides: Overrides, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "composer", None)
    with pytest.raises(ConfigError, match=r"composer is not installed; .* or set trainer=loop"):
        train(load_settings(QUICKSTART, overrides("run")))


@pytest.mark.long
def test_compare_from_the_command_line(overrides: Overrides, tmp_path: Path) -> None:
    arguments = ["compare", QUICKSTART, *overrides("run", "trainer=loop"), "--methods", "none,ted", "--seeds", "1"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    kept = json.loads((tmp_path / "run" / "compare.json").read_text())
    assert [arm["results"][0]["trainer"] for arm in kept] == ["loop", "loop"]


@pytest.mark.long
@pytest.mark.parametrize("precision", ["amp_bf16", "amp_fp16"])
def test_sixteen_bits(precision: str, overrides: Overrides, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[torch.dtype] = set()
    cross_entropy = torch.nn.functional.cross_entropy

    def note(logits: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        seen.add(logits.dtype)
        return cross_entropy(logits, *args, **options)

    monkeypatch.setattr("ted_stream.pipelines.training.tasks.cross_entropy", note)
    whole = train(load_settings(QUICKSTART, overrides("fp32", "trainer=loop")))
    half = train(load_settings(QUICKSTART, overrides("half", "trainer=loop", f"precision={precision}")))
    assert seen == {torch.float32, {"amp_bf16": torch.bfloat16, "amp_fp16": torch.float16}[precision]}
    assert half.forwarded == whole.forwarded
    assert half.metrics["CrossEntropy"] == pytest.approx(whole.metrics["CrossEntropy"], rel=0.1)
    newest = tmp_path / "half" / "checkpoints" / "newest"
    state = torch.load(newest.with_name(newest.read_text()), weights_only=True)
    assert {value.dtype for value in state["network"].values()} == {torch.float32, torch.int64}
    assert bool(state["scaler"]) == (precision == "amp_fp16")
    with pytest.raises(ConfigError, match=f"precision is {precision}, which Composer trains with on a GPU alone"):
        train(load_settings(QUICKSTART, overrides("composer", f"precision={precision}")))


@pytest.mark.long
def test_compiled(overrides: Overrides, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    common = ["trainer=loop", "max_duration=2ep", "save_interval=2ep", "pruning.method=importance_sampling"]
    plain = train(load_settings(QUICKSTART, overrides("plain", *common)))
    compiled = train(load_settings(QUICKSTART, overrides("compiled", *common, "compile=true")))
    assert compiled.metrics == pytest.approx(plain.metrics, rel=1e-3)
    assert_close(weights_of(tmp_path / "compiled"), weights_of(tmp_path / "plain"))


def test_it_shards_over_several_ranks_only(overrides: Overrides) -> None:
    with pytest.raises(ConfigError, match=r"fsdp shards over ranks, and there is one; launch several"):
        train(load_settings(QUICKSTART, overrides("run", "trainer=loop", "fsdp=true")))


@pytest.mark.long
def test_results_name_the_trainer(overrides: Overrides) -> None:
    result = train(load_settings(QUICKSTART, overrides("run", "trainer=loop", "max_duration=2ep")))
    assert json.loads((Path(result.folder) / "result.json").read_text()) == asdict(result)
    assert result.wall_seconds > result.seconds > 0
