"""Runs through llm-foundry's own command line: `make test-foundry` has an environment for it."""

import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from documents import blocks_of
from streaming import MDSWriter

from ted_stream import read_skip_list

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(find_spec("llmfoundry") is None, reason="llm-foundry pins older versions: make test-foundry"),
]
README = "ted_stream/trainers/foundry/README.md"
KEPT = [96, 75, 72, 69]
# Kills the process after so many batches.
KILLING = """
import os, signal
from composer import Callback
from llmfoundry.registry import callbacks

@callbacks.register("kill")
class Kill(Callback):
    def __init__(self, at):
        self.at = at
    def batch_end(self, state, logger):
        if state.timestamp.batch == self.at:
            os.kill(os.getpid(), signal.SIGKILL)
"""


def llmfoundry(*arguments: str) -> None:
    """A command of llm-foundry, in this process."""
    from llmfoundry.cli.cli import app
    from typer.testing import CliRunner

    with pytest.MonkeyPatch.context() as environment:
        if arguments[0] == "data_prep":
            environment.setenv("WORLD_SIZE", "1")  # as it sets it itself, for good
        done = CliRunner().invoke(app, list(arguments))
    if done.exception is not None:
        raise done.exception


def write_sums(folder: Path) -> None:
    """96 prompts and responses as JSON lines, and a tokenizer of them."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    rng = random.Random(0)
    (folder / "sums").mkdir()
    sums = [(rng.randint(0, 50), rng.randint(0, 50)) for _ in range(96)]
    rows = [{"prompt": f"What is {a} + {b}? ", "response": f"It is {a + b}."} for a, b in sums]
    (folder / "sums/train.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    tokenizer: Any = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=["<eos>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator([row["prompt"] + row["response"] for row in rows], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<eos>")
    fast.save_pretrained(str(folder / "tokenizer"))


@pytest.fixture(scope="module")
def readme_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder in which the blocks of the README were run, in order, as they stand."""
    folder = tmp_path_factory.mktemp("foundry")
    write_sums(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for block in blocks_of(README):
            if block.language == "yaml":
                (folder / "train.yaml").write_text(block.code)  # of two, the second stays
                continue
            assert block.language == "console"
            for line in block.code.replace("\\\n", " ").splitlines():
                program, *arguments = shlex.split(line)
                if program == "pip":
                    assert arguments == ["install", "ted-stream[foundry]"]
                else:
                    assert program == "llmfoundry"
                    llmfoundry(*arguments)
        yield folder


@pytest.fixture
def here(readme_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the data of that run, and its config."""
    for name in ("sums", "tokenizer", "data", "train.yaml"):
        (tmp_path / name).symlink_to(readme_run / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_config(**sections: Any) -> None:
    """The config of the README with other sections, without workers."""
    from omegaconf import OmegaConf

    config: Any = OmegaConf.to_container(OmegaConf.load("train.yaml"))
    loader = {**config["train_loader"], "num_workers": 0, "prefetch_factor": None, "persistent_workers": False}
    loader["dataset"]["local"] = f"cache/{os.getpid()}"
    loader = {**loader, **sections.pop("train_loader", {})}
    OmegaConf.save({**config, "train_loader": loader, **sections}, "own.yaml")


def epochs(run: Path) -> list[dict[str, Any]]:
    return json.loads((run / "run.json").read_text())["epochs"]


def pruned(run: Path, epoch: int) -> Any:
    return read_skip_list(run / f"skip_lists/ep{epoch:04}.parquet")


def counted(folder: Path, epoch: int) -> dict[str, int]:
    """What Composer itself counted up to the end of an epoch."""
    (path,) = folder.glob(f"checkpoints/ep{epoch}-*.pt")
    progress = torch.load(path, weights_only=False)["state"]["timestamp"]["Timestamp"]
    return {name: int(progress[name]) for name in ("batch", "sample")}


def test_the_readme(readme_run: Path) -> None:
    """Two lines of YAML prune, and the numbers are those that it tells."""
    two_lines, whole = (block.code for block in blocks_of(README) if block.language == "yaml")
    assert len(two_lines.splitlines()) == 2
    assert two_lines in whole
    text = (Path(__file__).parents[2] / README).read_text()
    assert f"read {', '.join(map(str, KEPT[:-1]))} and {KEPT[-1]}," in text
    run = readme_run / "ted_stream_runs/sums"
    assert [epoch["kept"] for epoch in epochs(run)] == KEPT
    assert [pruned(run, epoch).num_kept for epoch in range(4)] == KEPT
    for epoch in range(1, 5):
        batches = sum(-(-kept // 8) for kept in KEPT[:epoch])
        assert counted(readme_run, epoch) == {"batch": batches, "sample": sum(KEPT[:epoch])}
    assert (run / "manifest.parquet").is_file()
    assert json.loads((run / "run.json").read_text())["output_layer"] == "model.transformer.wte"


def test_names_of_methods_are_listed_and_no_others_of_llm_foundry() -> None:
    from llmfoundry import registry

    from ted_stream.trainers.foundry.algorithms import ALGORITHMS

    text = (Path(__file__).parents[2] / README).read_text()
    listed = re.findall(r"`(\w+)`", next(line for line in text.splitlines() if line.startswith("| a [method]")))
    assert set(listed) == ALGORITHMS.keys()
    assert ALGORITHMS.items() <= registry.algorithms.get_all().items()
    assert registry.algorithms.get("gradient_clipping").__name__ == "GradientClipping"
    assert registry.dataloaders.get("finetuning").__module__.startswith("llmfoundry.")


def test_killed_in_an_epoch_it_goes_on_to_the_same_end(here: Path, readme_run: Path) -> None:
    (here / "killing.py").write_text(KILLING)
    often = ["save_interval=5ba", "save_overwrite=true", f"train_loader.dataset.local=cache/{os.getpid()}"]
    command = [sys.executable, "-m", "llmfoundry.cli.cli", "train", "train.yaml", *often]
    killed = subprocess.run([*command, "code_paths=[killing.py]", "callbacks.kill.at=27"], capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()[-3000:]
    assert (here / "checkpoints/latest-rank0.pt").resolve().name == "ep2-ba25-rank0.pt"
    llmfoundry("train", "train.yaml", *often)
    runs = [folder / "ted_stream_runs/sums" for folder in (here, readme_run)]
    first, second = ([epoch["digest"] for epoch in epochs(run)] for run in runs)
    assert first == second
    saved = [torch.load(folder / "checkpoints/latest-rank0.pt", weights_only=False) for folder in (here, readme_run)]
    weights, expected = (state["state"]["model"] for state in saved)
    assert weights.keys() == expected.keys()
    for name, tensor in weights.items():
        assert torch.equal(tensor, expected[name]), name


def test_a_checkpoint_of_another_method_is_refused(here: Path, readme_run: Path) -> None:
    (path,) = readme_run.glob("checkpoints/ep2-*.pt")
    write_config(algorithms={"random_pruning": {"prune_ratio": 0.3}}, load_path=str(path))
    with pytest.raises(ValueError, match=r"TED.*RandomPruning"):
        llmfoundry("train", "own.yaml")


def test_json_lines_are_pruned_by_a_sampler(here: Path) -> None:
    """A model and a dataset of Hugging Face."""
    from transformers import LlamaConfig

    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    LlamaConfig(vocab_size=320, **sizes).save_pretrained("llama")
    data = {"hf_name": "json", "hf_kwargs": {"data_dir": str(here / "sums")}, "split": "train", "shuffle": True}
    write_config(
        model={"name": "hf_causal_lm", "pretrained_model_name_or_path": "llama", "pretrained": False},
        train_loader={"dataset": {**data, "max_seq_len": 32, "decoder_only_format": True}},
        algorithms={"random_pruning": {"prune_ratio": 0.5, "schedule": "constant", "annealing": 0.0}},
        max_duration="2ep",
    )
    llmfoundry("train", "own.yaml")
    assert [epoch["kept"] for epoch in epochs(here / "ted_stream_runs/sums")] == [48, 48]
    assert counted(here, 2) == {"batch": 12, "sample": 96}


def test_pretraining_reads_what_is_kept_and_weighs_it(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ted_stream.trainers.foundry.dataloaders import PrunedTextDataset

    rng = np.random.default_rng(0)
    with MDSWriter(out="rows/train", columns={"tokens": "ndarray:int64:16"}, size_limit=2000) as writer:
        for index in range(64):
            writer.write({"tokens": np.array([index, *rng.integers(0, 320, 15)])})
    rows: list[int] = []
    read = PrunedTextDataset._read_binary_tokenized_sample

    def recording(self: Any, sample: dict[str, Any]) -> Any:
        rows.append(int(sample["tokens"][0]))
        return read(self, sample)

    monkeypatch.setattr(PrunedTextDataset, "_read_binary_tokenized_sample", recording)
    data = {"remote": "rows", "local": "cache/rows", "split": "train", "shuffle": True, "max_seq_len": 16}
    write_config(
        train_loader={"name": "text", "dataset": data},
        algorithms={"infobatch": {"prune_ratio": 0.5, "annealing": 0.0}},
        max_duration="2ep",
    )
    llmfoundry("train", "own.yaml")
    second = pruned(here / "ted_stream_runs/sums", 1)
    assert 32 <= second.num_kept < 64
    assert second.weights is not None
    assert set(second.weights.tolist()) > {1.0}
    assert counted(here, 2)["sample"] == 64 + second.num_kept
    assert sorted(rows[-second.num_kept :]) == second.kept_ids(np.int64).tolist()


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        (
            {"train_loader": {"dataset": {"packing_ratio": 2.0}}},
            r"train_loader.dataset.packing_ratio is 2.0, so samples",
        ),
        ({"train_loader": {"dataset": {"packing_ratio": "auto"}}}, r"packing_ratio is 'auto'.*Leave packing_ratio out"),
        ({"train_loader": {"dataset": {"hf_name": "json", "replication": 2}}}, r"replication is 2, .* not streamed"),
        ({"train_loader": {"drop_last": True}}, r"The DataLoader has drop_last=True.*drop_last=False"),
        ({"algorithms": {"ted": {"prune_ratoi": 0.3}}}, r"algorithms.ted.prune_ratoi: .* did you mean prune_ratio"),
        ({"algorithms": {"ted": None}}, r"algorithms.ted has no value for prune_ratio"),
        ({"algorithms": {"ted": {"prune_ratio": 1.3}}}, r"prune_ratio is 1.3"),
    ],
)
def test_refused(here: Path, sections: dict[str, Any], words: str) -> None:
    data = sections.get("train_loader", {}).get("dataset")
    if data is not None:
        streamed = {} if "hf_name" in data else {"remote": "data/sums", "local": "cache/x"}
        data.update({**streamed, "split": "train", "shuffle": True, "max_seq_len": 32, "decoder_only_format": True})
    write_config(**sections)
    with pytest.raises((TypeError, ValueError), match=words):
        llmfoundry("train", "own.yaml")
