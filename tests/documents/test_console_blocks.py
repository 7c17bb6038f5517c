"""The commands of the documents run as they stand, on small stand-ins for the data that they name."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from documents import ROOT, Block, Entries, Given, blocks_of, swapped
from hub_folders import write_bert, write_instructions, write_llama, write_texts
from imagenet_sources import write_folders
from made_runs import make_run
from omegaconf import OmegaConf
from PIL import Image
from typer.testing import CliRunner
from webdataset.writer import TarWriter

from ted_stream import PrunedStreamingDataset
from ted_stream.cli.commands import app
from ted_stream.pipelines.corpora.digits import prepare_digits
from ted_stream.pipelines.corpora.imagenet import prepare_imagenet
from ted_stream.pipelines.corpora.instructions import prepare_instructions

console = Entries("console")
SHORT = ("max_duration=2ep", "data.num_workers=0", "model.channels=[4]", "progress_bar=false")
SHORT_TEXT = ("max_duration=2ep", "model.n_embd=8", "scheduler.warmup=1ba", "progress_bar=false")
RANKS = {"composer -n": "composer", "torchrun --nproc-per-node": "torch"}


def commands(code: str) -> Iterator[list[str]]:
    """The words of each, without comments and variables of the environment."""
    for line in code.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
            words.pop(0)
        if words:
            yield words


def run(code: str, *, more: Sequence[str] = (), given: Given | None = None, config: Sequence[str] = SHORT) -> str:
    """Every command in this process, or, if it is launched on ranks, on two of them.

    Args:
        code: of the block.
        more: options to add to each.
        given: where something is launched.
        config: settings to add to those that train.

    Returns:
        All that they print.
    """
    printed = []
    for words in commands(code):
        launcher = RANKS.get(" ".join(words[:2]))
        if launcher is not None:
            assert words[3:5] == ["-m", "ted_stream.cli"]
        arguments = words[1:] if launcher is None else words[5:]
        assert launcher is not None or words[0] == "ted-stream", words
        overrides = config if arguments[0] in ("train", "compare", "score") else ()
        arguments = [*arguments, *overrides, *more]
        if launcher is not None:
            assert given is not None
            command = ROOT / "ted_stream/cli/__main__.py"
            given.fixture("launch")(command, *arguments, ranks=2, launcher=launcher)
            continue
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 0, f"{shlex.join(words)}\n{done.output}\n{done.exception!r}"
        printed.append(done.output)
    return "\n".join(printed)


def of(document: str, words: str, *, long: bool = False) -> Callable[[Any], Any]:
    return console.of(document, words, long=long)


# What the commands read


def small_digits(path: str = "data/digits") -> None:
    prepare_digits(path)


def small_imagenet(path: str) -> None:
    prepare_imagenet(path, write_folders(Path("source"), per_class=16, test_per_class=4), shard_size=20_000)


def small_pairs(path: str) -> None:
    lines = [f'{{"question": "{at} and {at}?", "answer": "{2 * at}"}}' for at in range(40)]
    Path(path).write_text("\n".join(lines))


def small_gsm8k() -> None:
    small_pairs("train.jsonl")
    fields: Any = {"prompt_field": "question", "response_field": "answer"}
    prepare_instructions("data/gsm8k", "train.jsonl", test_fraction=0.2, train_tokenizer_size=300, **fields)


JPEGS = (
    *("data.image_size=16", "data.batch_size=16", "data.eval_batch_size=16", "data.num_workers=0"),
    *("model.name=convnet", "model.channels=[4]", "model.channels_last=false", "precision=fp32", "max_duration=2ep"),
    *("scheduler.milestones=[1ep]", "scheduler.warmup=1ba", "progress_bar=false"),
)


def small_tree(path: str) -> None:
    rng = np.random.default_rng(0)
    for split, count in (("train", 3), ("test", 1)):
        for label in range(10):
            folder = Path(path) / split / f"class{label}"
            folder.mkdir(parents=True)
            for at in range(count):
                Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(folder / f"{at}.png")


# README.md


@of("README.md", "make quickstart", long=True)
def _(code: str, given: Given) -> None:
    """What make would run, with fewer seeds and epochs; and what it checks with is there."""
    del given
    told = {}
    for words in commands(code):
        assert words[0] == "make"
        done = subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, capture_output=True, text=True, check=True)
        told[words[1]] = [line.split("/bin/", 1)[1] for line in done.stdout.splitlines() if "/bin/" in line]
    *prepare, compare = [line for line in told["quickstart"] if line.startswith("ted-stream ")]
    run("\n".join(prepare))
    output = run(swapped(compare, {"--seeds 3": "--seeds 1"}))
    for name in ("full data", "shorter", "random", "ted"):
        assert name in output
    programs = [line.split()[0] for line in told["test"]]
    assert programs[-3:] == ["ruff", "ruff", "pytest"]


@of("README.md", "pip install", long=True)
def _(code: str, given: Given) -> None:
    """The extras are there; and what pip installs of a checkout has all that the package reads."""
    lines = list(commands(code))
    assert [words[:2] for words in lines] == 2 * [["pip", "install"]]
    extras = re.findall(r"\[(.*?)]", lines[1][2])[0].split(",")
    text = (ROOT / "pyproject.toml").read_text()
    assert all(re.search(rf"^{extra} = \[", text, flags=re.MULTILINE) for extra in extras)
    checkout = given.folder / "checkout"
    checkout.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, checkout)
    shutil.copytree(ROOT / "ted_stream", checkout / "ted_stream", symlinks=True)
    shutil.copytree(ROOT / "pipelines", checkout / "pipelines")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*install, "--target", str(given.folder / "installed"), "."], cwd=checkout, check=True)
    installed = given.folder / "installed/ted_stream"

    def files(folder: Path) -> set[str]:
        """Also of the linked folder, which a checkout has and an installation copies."""
        found = (Path(at) / name for at, _, names in os.walk(folder, followlinks=True) for name in names)
        return {path.relative_to(folder).as_posix() for path in found if path.suffix not in (".pyc", "")}

    assert files(installed) == files(ROOT / "ted_stream")
    code = "import sys; from ted_stream.cli import main; sys.argv = ['ted-stream', 'methods', 'random']; main()"
    environment = {**os.environ, "PYTHONPATH": str(given.folder / "installed")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=given.folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert f"card: {installed}" in done.stdout


# The commands' own


@of("ted_stream/cli/README.md", "ted-stream --help")
def _(code: str, given: Given) -> None:
    del given
    output = run(code)
    for words in ("Usage", "pruning.method=NAME", "coverage"):
        assert words in output


# Data


@of("pipelines/corpora/README.md", "--source photos", long=True)
def _(code: str, given: Given) -> None:
    del given
    write_folders(Path("photos"), per_class=16, test_per_class=4)
    output = run(swapped(code, {"--workers 16": "--workers 1"}), config=JPEGS)
    assert "64 train, 16 test samples" in output
    assert "test accuracy" in output


@of("pipelines/corpora/README.md", "ted-stream prepare cifar10 ")
def _(code: str, given: Given) -> None:
    del given
    small_tree("cifar10")
    subprocess.run(["tar", "cf", "cifar10.tar", "cifar10"], check=True)
    for label in range(10, 100):
        for split in ("train", "test"):
            shutil.copytree(f"cifar10/{split}/class0", f"cifar10/{split}/class{label}")
    Path("cifar10").rename("cifar100")
    output = run(code)
    assert "cifar10: 30 train, 10 test samples" in output
    assert "cifar100: 300 train, 100 test samples" in output


@of("pipelines/corpora/README.md", "ted-stream prepare instructions")
def _(code: str, given: Given) -> None:
    given.fixture("monkeypatch").setattr("datasets.config.HF_DATASETS_CACHE", given.folder / "cache")
    small_pairs("train.jsonl")
    small_pairs("test.jsonl")
    prepare_instructions(
        "first", "train.jsonl", prompt_field="question", response_field="answer", train_tokenizer_size=300
    )
    template = "{% for m in messages %}{{ m.content }}{{ '\n\n' }}{% endfor %}"
    tokenizer = json.loads(Path("first/tokenizer/tokenizer_config.json").read_text())
    Path("first/tokenizer/tokenizer_config.json").write_text(json.dumps({**tokenizer, "chat_template": template}))
    turns = [{"role": "user", "content": "2 and 2?"}, {"role": "assistant", "content": "4"}]
    Path("chats.jsonl").write_text("\n".join([json.dumps({"messages": turns})] * 40 + ['{"messages": []}']))
    Path("alpaca").mkdir()
    Path("alpaca/train.jsonl").write_text('{"instruction": "Add.", "input": "2 2", "output": "4"}\n' * 40)
    output = run(swapped(code, {"path/or/hub-name": "first/tokenizer", "tatsu-lab/alpaca": "alpaca"}))
    assert "40 train, 40 test samples" in output
    assert "Records left out: 1 (1 empty)" in output
    assert output.count("38 train, 2 test samples") == 2


@of("pipelines/corpora/README.md", "ted-stream prepare glue")
def _(code: str, given: Given) -> None:
    del given
    rows = {"MRPC": "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n" + "1\t7\t8\tone\tanother\n" * 40}
    rows["SST-2"] = "sentence\tlabel\n" + "good\t1\n" * 40
    for task, text in rows.items():
        for split in ("train", "dev"):
            Path("glue_data", task).mkdir(parents=True, exist_ok=True)
            Path("glue_data", task, f"{split}.tsv").write_text(text)
    mrpc, sst2 = code.strip().splitlines()
    output = run(sst2) + run(swapped(mrpc, {"path/or/hub-name": "data/sst2-noisy/tokenizer"}))
    assert "sst2: 40 train, 40 test samples" in output
    assert "mrpc: 40 train, 40 test samples" in output


# Reading


@of("ted_stream/reading/README.md", "ted-stream index", long=True)
def _(code: str, given: Given) -> None:
    s3 = given.fixture("s3")
    for shard in range(2):
        with TarWriter("x.tar") as writer:
            for at in range(4):
                writer.write({"__key__": f"{shard}{at}", "txt": "x"})
        s3.upload_file("x.tar", "training", f"imagenet-train-{shard:06}.tar")
    output = run(swapped(code, {"001281": "000001", "s3://bucket": "s3://training"}), more=["--workers", "1"])
    assert "8 samples in 2 shards" in output
    remote = PrunedStreamingDataset(remote="s3://training", local="local", batch_size=4, decoders=())
    assert sorted(sample["__key__"] for sample in remote) == [f"{shard}{at}" for shard in range(2) for at in range(4)]


@of("ted_stream/reading/README.md", "ted-stream bench streaming", long=True)
def _(code: str, given: Given) -> None:
    del given
    run(code, more=["--size=0.003", "--workers=1", "--bandwidth=20", "--latency=1", "--repeats=1"])


@of("ted_stream/reading/README.md", "ted-stream bench local", long=True)
def _(code: str, given: Given) -> None:
    del given
    local, planning = code.splitlines()
    run(local, more=["--raw-samples=200", "--jpeg-samples=20", "--repeats=1"])
    run(planning, more=["--samples=5000", "--shards=7", "--stock-samples=40000", "--pruned-samples=30000"])


@of("ted_stream/trainers/README.md", "ted-stream bench seeding", long=True)
def _(code: str, given: Given) -> None:
    del given
    run(code, more=["--raw-samples=200", "--jpeg-samples=40", "--rounds=1"])


# Training


def ranked(code: str, given: Given, config: Sequence[str]) -> None:
    """One run of each command, in a folder of its own."""
    for number, line in enumerate(code.replace("\\\n", " ").splitlines()):
        own = () if "folder=" in line or "ted-stream prepare" in line else (f"folder=runs/{number}",)
        run(line, given=given, config=(*config, *own))


@of("pipelines/training/README.md", "ted-stream compare", long=True)
def _(code: str, given: Given) -> None:
    del given
    small_digits("data/cifar10")
    output = run(swapped(code, {"--seeds 3": "--seeds 1"}))
    assert output.count("test accuracy") > 1


@of("pipelines/training/README.md", "torchrun", long=True)
def _(code: str, given: Given) -> None:
    small_imagenet("data/imagenet")
    ranked(code, given, JPEGS)


@of("pipelines/training/README.md", "glue_bert_base.yaml", long=True)
def _(code: str, given: Given) -> None:
    """With models of the same architectures, in folders."""
    del given
    Path("hub").mkdir()
    Path("data").mkdir()
    bert, llama = write_bert(Path("hub/bert")), write_llama(Path("hub/llama"))
    write_instructions(Path("data/alpaca"), llama)
    write_texts(Path("data/other"), bert)
    places = {
        "--tokenizer google-bert/bert-base-uncased": f"--tokenizer {bert} --source data/other-source --max-length 64",
        "meta-llama/Llama-3.1-8B": str(llama),
    }
    config = ("precision=fp32", "model.dtype=float32", "max_duration=2ep", "data.num_workers=0", "data.batch_size=8")
    config += ("progress_bar=false",)
    for line in swapped(code, places).splitlines():
        own = (f"model.pretrained={bert}",) if "glue_bert" in line else ("scheduler.warmup=2ba",)
        run(line, config=(*config, *own))
    assert Path("runs/glue-bert-base/model/model.safetensors").is_file()
    assert Path("runs/alpaca-llama2-7b-lora/model/adapter_model.safetensors").is_file()


@of("pipelines/training/README.md", "save_interval=100ba", long=True)
def _(code: str, given: Given) -> None:
    """Twice: the second goes on from the first's checkpoints."""
    small_digits("data/cifar10")
    code = swapped(code, {"100ba": "4ba"})
    run(code, given=given)
    assert list(Path("runs/cifar10-cpu/checkpoints").iterdir())
    run(code, given=given, config=(*SHORT, "max_duration=3ep"))


@of("pipelines/training/README.md", "--source /data/ILSVRC2012", long=True)
def _(code: str, given: Given) -> None:
    write_folders(Path("source"), per_class=16, test_per_class=4)
    code = swapped(code, {"/data/ILSVRC2012": "source", "--workers 16": "--workers 1"})
    ranked(code, given, JPEGS)


@of("pipelines/training/README.md", "data.cache=/nvme/imagenet", long=True)
def _(code: str, given: Given) -> None:
    s3 = given.fixture("s3")
    small_imagenet("prepared")
    for path in Path("prepared").rglob("*"):
        if path.is_file():
            s3.upload_file(str(path), "training", f"imagenet/{path.relative_to('prepared')}")
    places = {
        "/nvme": str(given.folder / "nvme"),
        "/shared": str(given.folder / "shared"),
        "s3://bucket": "s3://training",
    }
    ranked(swapped(code, places), given, JPEGS)
    assert list(Path("nvme/imagenet/train").glob("*.mds"))
    assert Path("shared/runs/imagenet/manifest.parquet").is_file()


@of("pipelines/training/README.md", "method=el2n", long=True)
@of("pipelines/training/README.md", "pruning.method=learnability", long=True)
def _(code: str, given: Given) -> None:
    """Both blocks, of which the second reads what the first writes."""
    del code, given
    small_digits()
    document = [block.code for block in blocks_of("pipelines/training/README.md")]
    scores, trains = ([code for code in document if words in code] for words in ("method=el2n", "learnability"))
    output = run(*scores)
    assert "next: ted-stream train" in output
    run(*trains)
    assert Path("runs/learnt/manifest.parquet").is_file()
    assert Path("runs/fixed/result.json").is_file()


@of("pipelines/training/README.md", "method=ifd", long=True)
def _(code: str, given: Given) -> None:
    del given
    small_gsm8k()
    output = run(code, config=SHORT_TEXT)
    for words in ("with an IFD of 1 or more", "train.jsonl", "text"):
        assert words in output


@of("pipelines/analysis/README.md", "ted-stream analyse", long=True)
def _(code: str, given: Given) -> None:
    del given
    small_digits()
    run(code)
    for name in ("losses", "least_kept", "gradients", "interpolation"):
        assert Path(f"runs/ted/analysis/{name}.png").is_file()


# Reports


def two_runs() -> None:
    small_digits()
    layout = PrunedStreamingDataset(local="data/digits/train", batch_size=8).layout
    for seed, name in enumerate(("random", "ted")):
        make_run(Path("runs") / name, layout, seed=seed, name=name)
        Path(f"runs/{name}/config.yaml").write_text("data: {path: data/digits}\n")


@of("pipelines/report/README.md", "ted-stream report", long=True)
def _(code: str, given: Given) -> None:
    del given
    two_runs()
    run(code)
    page = Path("report.html").read_text()
    text = (ROOT / "pipelines/report/README.md").read_text()
    charts = set(re.findall(r"<h3>(.*?)</h3>", page))
    for chart in charts - {"Highest scores", "Lowest scores", "Most contested"}:
        assert f"| {chart} |" in text, f"the guide does not tell of the chart {chart}"
    assert {"Keep ratio", "Churn", "Scores", "Highest scores"} <= charts


@of("pipelines/report/README.md", "ted-stream inspect")
def _(code: str, given: Given) -> None:
    del given
    two_runs()
    output = run(code)
    for words in ("most contested", "a run and a run", '"kind"', "skip-list of epoch 3"):
        assert words in output


# Benchmarks


@of("pipelines/benches/costs.md", "ted-stream bench selection", long=True)
def _(code: str, given: Given) -> None:
    del given
    small = {
        "selection": ["--samples=30001", "--repeats=1"],
        "boundary": ["--samples=3001", "--shards=5", "--batch-size=64"],
        "step": ["--model=convnet", "--rounds=1", "--steps=1", "--batch-size=4"],
        "hosts": ["--model=convnet", "--rounds=1", "--steps=6", "--batch-size=4"],
        "scoring": ["--samples=2000", "--classes=10", "--features=4"],
    }
    for words in commands(code):
        run(shlex.join(words), more=small.pop(words[2]))
    assert not small


@of("pipelines/benches/costs.md", "ted-stream score", long=True)
def _(code: str, given: Given) -> None:
    del given
    small_digits("data/cifar10")
    assert "epochs of training" in run(code, config=(*SHORT, "max_duration=1ep"))


def shortened(name: str, arms: Sequence[str]) -> None:
    """The sweep's file with few arms and epochs, in a folder of configs of its own."""
    if Path("configs").is_symlink():
        Path("configs").unlink()
        shutil.copytree(ROOT / "configs", "configs")
    sweep: Any = OmegaConf.load(f"configs/{name}")
    sweep = OmegaConf.merge(sweep, {"epochs": [2], "seeds": 1, "savings": [0.3]})
    sweep.train.model.channels = [4]
    sweep.arms = {arm: sweep.arms[arm] for arm in arms}
    OmegaConf.save(sweep, f"configs/{name}")


@of("pipelines/benches/README.md", "configs/bench_digits.yaml", long=True)
def _(code: str, given: Given) -> None:
    del given
    shortened("bench_digits.yaml", ["random", "EL2N"])
    output = run(code)
    assert "| EL2N |" in output


@of("pipelines/benches/README.md", "bench_cifar10_time_cpu.yaml", long=True)
def _(code: str, given: Given) -> None:
    del given
    small_digits("data/cifar10")
    name = "bench_cifar10_time_cpu.yaml"
    shortened(name, ["random"])
    path = Path("configs") / name
    sweep: Any = OmegaConf.load(path)
    sweep.samples, sweep.size = 600, 8
    OmegaConf.save(sweep, path)
    assert "| random |" in run(code)


@of("pipelines/benches/README.md", "ted-stream bench noise", long=True)
def _(code: str, given: Given) -> None:
    del given
    small_digits("data/cifar10")
    prepare, noise = code.splitlines()
    assert next(commands(prepare)) == ["ted-stream", "prepare", "cifar10"]  # which downloads
    run(noise, more=["--seeds=2", "--samples=300", "--size=8", "--epochs=4"])


@of("pipelines/benches/README.md", "configs/cifar10_resnet18.yaml", long=True)
def _(code: str, given: Given) -> None:
    del given
    small_digits("data/cifar10")
    small = ("model.name=convnet", *SHORT, "precision=fp32", "eval_interval=2ep")
    run(swapped(code, {"--seeds 2": "--seeds 1"}), config=small)


@of("pipelines/benches/README.md", "configs/gsm8k_cpu.yaml", long=True)
def _(code: str, given: Given) -> None:
    del given
    small_digits("data/cifar10")
    small_gsm8k()
    images, texts = code.splitlines()
    run(images, more=["--seeds=1"])
    run(swapped(texts, {"--seeds 2": "--seeds 1"}), config=SHORT_TEXT)


@of("pipelines/benches/README.md", "pruning.prune_ratio=0.5 --methods", long=True)
def _(code: str, given: Given) -> None:
    del given
    small_digits()
    run(swapped(code, {"--seeds 3": "--seeds 1"}))


# After all entries, by which blocks are marked as long.
@pytest.mark.parametrize("block", console.cases())
def test_a_block(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    monkeypatch.chdir(tmp_path)
    Path("configs").symlink_to(ROOT / "configs")
    console.run(block, Given(tmp_path, request.getfixturevalue))


def test_no_entry_is_without_a_block() -> None:
    assert console.unused() == []
