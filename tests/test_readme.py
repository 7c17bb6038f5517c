"""The README's code does what the README says."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from composer.models import ComposerClassifier
from composer.optim import CosineAnnealingScheduler
from hf_runs import Texts, tiny_lm
from test_trl import instructions, settings, tokenizer
from torch.utils.data import DataLoader, TensorDataset
from transformers import TrainingArguments
from trl import SFTConfig  # pyright: ignore[reportPrivateImportUsage]
from webdataset.writer import TarWriter

from ted_stream import (
    TED,
    PrunedSampler,
    PrunedStreamingDataset,
    Pruner,
    PruningMixin,
    SkipList,
    write_skip_list,
)
from ted_stream.reading.tar_index import index_tars

ROOT = Path(__file__).parents[1]
GUIDES = ROOT / "ted_stream/trainers"


def block(words: str, guide: str = "../..") -> str:
    blocks = re.findall(r"```python\n(.*?)```", (GUIDES / guide / "README.md").read_text(), flags=re.DOTALL)
    (found,) = [code for code in blocks if words in code]
    return found


def swapped(code: str, replacements: dict[str, str]) -> str:
    for old, new in replacements.items():
        assert code.count(old) >= 1, old
        code = code.replace(old, new)
    return code


class TupleRows(PrunedStreamingDataset):
    def __getitem__(self, at: Any) -> Any:
        sample = super().__getitem__(at)
        return sample["x"], sample["y"]


def test_the_trainer_example(make_mds: Callable[..., str], tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    model = ComposerClassifier(torch.nn.Linear(6, 3), num_classes=3)
    names = {
        "model": model,
        "cosine": CosineAnnealingScheduler(),
        "sgd": torch.optim.SGD(model.parameters(), 0.1),
        "TupleRows": TupleRows,
    }
    code = swapped(
        block("algorithms=["),
        {
            'PrunedStreamingDataset(remote="s3://bucket/imagenet", local="/nvme/imagenet", split="train"': (
                f'TupleRows(local="{make_mds(64)}"'
            ),
            "batch_size=256": "batch_size=8",
            "num_workers=8": "num_workers=0",
            "90ep": "4ep",
            "algorithms=": "progress_bar=False, run_name='r1', device='cpu', algorithms=",
        },
    )
    exec(code, names)
    assert (tmp_path / "ted_stream_runs" / "r1" / "run.json").is_file()
    kept = pq.read_table(tmp_path / "ted_stream_runs" / "r1" / "manifest.parquet").num_rows
    # The subset of a pruned epoch, read later as the README says.
    later = swapped(
        block('split="train", batch_size=256'),
        {
            "PrunedStreamingDataset(": "subset = PrunedStreamingDataset(",
            'local="/nvme/imagenet", split="train"': f'local="{make_mds(64)}"',
            "ep0080": "ep0003",
            "batch_size=256": "batch_size=8",
        },
    )
    names["PrunedStreamingDataset"] = PrunedStreamingDataset
    exec(later, names)
    assert len(list(names["subset"])) == kept < 64


def test_pipelines_of_webdataset_leave_pruned_samples_out(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    for shard in range(2):
        with TarWriter(f"x-{shard}.tar") as writer:
            for index in range(8 * shard, 8 * shard + 8):
                writer.write({"__key__": f"{index:03}", "txt": f"sample {index}"})
    index_tars("x-{0..1}.tar")
    layout = PrunedStreamingDataset(local=".", batch_size=8).layout
    pruned = np.array([0, 3, 7, 8, 15])
    skip_list = SkipList.from_pruned_ids(layout, pruned, epoch=80, keep_ratio=0.7, method="TED", run="r1")
    (tmp_path / "ted_stream_runs/r1/skip_lists").mkdir(parents=True)
    write_skip_list(skip_list, tmp_path / "ted_stream_runs/r1/skip_lists/ep0080.parquet")
    names: dict[str, Any] = {"urls": "x-{0..1}.tar"}
    exec(block("drop_pruned("), names)
    for pipeline in ("samples", "seeking"):
        found = sorted(sample["txt"] for sample in names[pipeline])
        assert found == sorted(f"sample {index}" for index in skip_list.kept_ids()), pipeline


def test_a_sampler_leaves_pruned_samples_out(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    dataset = TensorDataset(torch.arange(100))
    layout = PrunedSampler(dataset).layout
    skip_list = SkipList.from_pruned_ids(layout, np.arange(60), epoch=6, keep_ratio=0.4, method="TED", run="r2")
    (tmp_path / "ted_stream_runs/r2/skip_lists").mkdir(parents=True)
    write_skip_list(skip_list, tmp_path / "ted_stream_runs/r2/skip_lists/ep0006.parquet")
    names: dict[str, Any] = {"dataset": dataset, "DataLoader": DataLoader}
    exec(block("later = PrunedSampler(dataset"), names)
    assert sorted(torch.cat([batch for (batch,) in names["loader"]]).tolist()) == list(range(100))
    assert sorted(names["later"]) == list(range(60, 100))


def test_a_dataset_becomes_prunable() -> None:
    exec(block("class Mine(Prunable"), {})


@pytest.mark.long
def test_other_tools_read_skip_lists(make_mds: Callable[..., str], tmp_path: Path) -> None:
    """The snippet runs without this package and prints the pruned positions."""
    layout = PrunedStreamingDataset(local=make_mds(120), batch_size=8).layout
    pruned = np.array([0, 7, 50, 51, 52, 119])
    skip_list = SkipList.from_pruned_ids(layout, pruned, epoch=7, keep_ratio=0.95, method="TED", run="r1")
    write_skip_list(skip_list, tmp_path / "ep0007.parquet")
    code = block("BitMap.deserialize") + "\nimport sys; assert not {'ted_stream', 'torch'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    expected = [
        f"{layout.stream_keys[0]} {shard.name} {[int(p - start) for p in pruned if start <= p < start + shard.samples]}"
        for shard, start in zip(layout.shards, layout.shard_offsets.tolist(), strict=True)
    ]
    assert done.stdout.splitlines() == expected


@pytest.mark.parametrize("guide", ["../..", "loop"])
def test_the_loop(guide: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = torch.nn.Linear(6, 3)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    names: dict[str, Any] = {
        "model": model,
        "optimizer": optimizer,
        "dataset": TensorDataset(torch.randn(64, 6), torch.arange(64) % 3),
        "DataLoader": DataLoader,
        "CosineAnnealingLR": torch.optim.lr_scheduler.CosineAnnealingLR,
        "cross_entropy": torch.nn.functional.cross_entropy,
    }
    changes = {"batch_size=256": "batch_size=8", "num_workers=8": "num_workers=0", "90": "4"}
    exec(swapped(block("with Pruner(", guide), changes), names)
    assert names["pruner"].records[0].kept == 64
    assert min(record.kept for record in names["pruner"].records) < 64
    assert abs(optimizer.param_groups[0]["lr"]) < 1e-9
    assert len(list(tmp_path.glob("ted_stream_runs/*/manifest.parquet"))) == 1
    told: dict[str, float] = {}
    writer = SimpleNamespace(add_scalar=lambda name, value, step: told.update({name: value}))
    exec(block("writer.add_scalar(", "loop"), names | {"rank": 0, "writer": writer})
    assert told == names["pruner"].metrics
    table = (GUIDES / "loop/README.md").read_text()
    assert all(f"`{name.removeprefix('pruning/')}`" in table for name in told if "score_q" not in name)


def test_the_loop_goes_on(tmp_path: Path, monkeypatch: Any) -> None:
    """From the state that the guide saves, by the lines that it loads it with."""
    monkeypatch.chdir(tmp_path)
    dataset = TensorDataset(torch.randn(64, 6), torch.arange(64) % 3)

    def parts() -> dict[str, Any]:
        torch.manual_seed(0)
        model = torch.nn.Linear(6, 3)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        loader = DataLoader(dataset, batch_size=8, sampler=PrunedSampler(dataset))
        pruner = Pruner(TED(0.6), model, loader, epochs=4, folder=tmp_path / "run", run_name="run")
        scheduler = pruner.stretch(torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=4 * pruner.full_length))
        return {"model": model, "optimizer": optimizer, "scheduler": scheduler, "pruner": pruner}

    def train(names: dict[str, Any], save_after: int = 0) -> torch.Tensor:
        batches = 0
        with names["pruner"] as pruner:
            for _ in pruner:
                for x, y in pruner.batches():
                    pruner.loss(torch.nn.functional.cross_entropy(names["model"](x), y)).backward()
                    names["optimizer"].step()
                    names["optimizer"].zero_grad()
                    names["scheduler"].step()
                    batches += 1
                    if batches == save_after:
                        exec(block("state = {", "loop"), names | {"rank": 0, "torch": torch})
        return names["model"].weight

    expected, again = train(parts(), save_after=11), parts()
    exec(block("load_state_dict(state[name])", "loop"), again | {"torch": torch})
    assert torch.equal(train(again), expected)


@pytest.mark.long
@pytest.mark.parametrize("guide", ["../..", "huggingface"])
def test_the_huggingface_trainer(guide: str, tmp_path: Path) -> None:
    args = TrainingArguments(
        output_dir=str(tmp_path), num_train_epochs=4, use_cpu=True, report_to=[], dataloader_pin_memory=False
    )
    names: dict[str, Any] = {"model": tiny_lm(), "args": args, "data": Texts()}
    code = swapped(
        block("transformers import Trainer", guide), {"PrunedTrainer(model": "trainer = PrunedTrainer(model"}
    )
    exec(code.replace(".train()", "; trainer.train()"), names)
    assert min(record.kept for record in names["trainer"].pruning_records) < 22
    assert (tmp_path / "pruning/manifest.parquet").is_file()
    assert (tmp_path / f"checkpoint-{names['trainer'].state.global_step}/pruning.pt").is_file()


def test_the_arguments_that_are_reported(tmp_path: Path) -> None:
    names: dict[str, Any] = {}
    exec(block("class Arguments(", "huggingface"), names)
    args = names["Arguments"](output_dir=str(tmp_path), report_to=[], use_cpu=True, pruning="TED(0.5)")
    assert args.to_dict()["pruning"] == "TED(0.5)"


@pytest.mark.long
def test_the_trl_trainer(tmp_path: Path) -> None:
    args = SFTConfig(**settings(str(tmp_path)))
    names: dict[str, Any] = {"model": tiny_lm(), "args": args, "data": instructions(), "PruningMixin": PruningMixin}
    arguments = {
        "pruning=": "processing_class=tokenizer(), pruning=",
        "PrunedSFTTrainer(model": "it = PrunedSFTTrainer(model",
    }
    code = swapped(block("trl import SFTTrainer", "huggingface"), arguments)
    with pytest.warns(UserWarning, match="measures samples at their logits"):
        exec(code.replace(".train()", "; it.train()"), names | {"TED": TED, "tokenizer": tokenizer}, names)
    assert min(record.kept for record in names["it"].pruning_records) < 30


def test_the_composer_guide_shows_the_readmes_trainer() -> None:
    assert block("algorithms=[", "composer") in block("algorithms=[")


@pytest.mark.long
def test_the_scoring_commands(tmp_path: Path) -> None:
    """As they stand, on digits; then the two ways to train that the text names."""
    found = re.findall(r"```console\n(ted-stream score.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    commands = ["ted-stream prepare digits", *found[0].splitlines()]
    commands.append("ted-stream score configs/quickstart.yaml method=craig prune_ratio=0.5 folder=runs/craig")
    train = "ted-stream train configs/quickstart.yaml trainer=loop max_duration=4ep"
    commands.append(
        f"{train} folder=runs/learnt pruning.method=learnability pruning.reference=runs/reference/scores.parquet"
    )
    commands.append(
        f"{train} folder=runs/fixed pruning.method=fixed_subset pruning.skip_list=runs/craig/skip_list.parquet"
        " pruning.prune_ratio=null"
    )
    for command in commands:
        program, *arguments = command.split()
        assert program == "ted-stream"
        run = [sys.executable, "-m", "ted_stream.cli", *arguments]
        done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
