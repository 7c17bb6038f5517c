"""The Python of the documents does what they say, with stand-ins for data, models and lengths."""

import re
import subprocess
import sys
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from composer.models import ComposerClassifier
from composer.optim import CosineAnnealingScheduler
from documents import Block, Entries, Given, blocks_of, swapped, text_of
from hf_runs import Texts, tiny_lm
from imagenet_sources import write_folders
from PIL import Image
from streaming import MDSWriter
from test_trl import instructions, settings, tokenizer
from torch.utils.data import DataLoader, TensorDataset
from transformers import AutoTokenizer, TrainingArguments
from trl import SFTConfig  # pyright: ignore[reportPrivateImportUsage]
from webdataset.writer import TarWriter

from ted_stream import (
    TED,
    DataPruning,
    PrunedSampler,
    PrunedStreamingDataset,
    Pruner,
    PruningMixin,
    RandomPruning,
    SkipList,
    write_skip_list,
)
from ted_stream.pipelines.corpora.imagenet import prepare_imagenet
from ted_stream.pipelines.corpora.instructions import prepare_instructions
from ted_stream.reading.tar_index import index_tars

python = Entries("python")


class TupleRows(PrunedStreamingDataset):
    def __getitem__(self, at: Any) -> Any:
        sample = super().__getitem__(at)
        return sample["x"], sample["y"]


def in_run(run: str, epoch: int, skip_list: SkipList) -> None:
    folder = Path("ted_stream_runs") / run / "skip_lists"
    folder.mkdir(parents=True)
    write_skip_list(skip_list, folder / f"ep{epoch:04}.parquet")


def rows(count: int = 64) -> TensorDataset:
    return TensorDataset(torch.randn(count, 6), torch.arange(count) % 3)


# Composer


def trains_in_composer(code: str, names: dict[str, Any]) -> None:
    model = ComposerClassifier(torch.nn.Linear(6, 3), num_classes=3)
    names |= {
        "model": model,
        "cosine": CosineAnnealingScheduler(),
        "sgd": torch.optim.SGD(model.parameters(), 0.1),
    }
    stand_ins = {
        "batch_size=256": "batch_size=8",
        "num_workers=8": "num_workers=0",
        "90ep": "4ep",
        "algorithms=": "progress_bar=False, run_name='r1', device='cpu', algorithms=",
    }
    exec(swapped(code, stand_ins), names)
    assert Path("ted_stream_runs/r1/run.json").is_file()
    assert pq.read_table("ted_stream_runs/r1/manifest.parquet").num_rows < 64


@python.of("README.md", "algorithms=[")
def _(code: str, given: Given) -> None:
    shards = f'TupleRows(local="{given.fixture("make_mds")(64)}"'
    remote = 'PrunedStreamingDataset(remote="s3://bucket/imagenet", local="/nvme/imagenet", split="train"'
    trains_in_composer(swapped(code, {remote: shards}), {"TupleRows": TupleRows})


@python.of("ted_stream/trainers/composer/README.md", "algorithms=[")
def _(code: str, given: Given) -> None:
    train = TupleRows(local=given.fixture("make_mds")(64), shuffle=True, batch_size=8)
    (readmes,) = [block.code for block in blocks_of("README.md") if "algorithms=[" in block.code]
    assert code in readmes
    names = {"train": train, "DataLoader": DataLoader, "DataPruning": DataPruning, "RandomPruning": RandomPruning}
    exec("from composer import Trainer", names)
    trains_in_composer(code, names)


# Hugging Face


def arguments(folder: Path) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(folder), num_train_epochs=4, use_cpu=True, report_to=[], dataloader_pin_memory=False
    )


def keeping_the_trainer(code: str, name: str) -> str:
    return swapped(code, {f"\n{name}(model": f"\ntrainer = {name}(model", ".train()": "; trainer.train()"})


@python.of("README.md", "transformers import Trainer")
@python.of("ted_stream/trainers/huggingface/README.md", "transformers import Trainer")
def _(code: str, given: Given) -> None:
    names: dict[str, Any] = {"model": tiny_lm(), "args": arguments(given.folder), "data": Texts()}
    exec(keeping_the_trainer(code, "PrunedTrainer"), names)
    assert min(record.kept for record in names["trainer"].pruning_records) < 22
    assert Path("pruning/manifest.parquet").is_file()
    assert Path(f"checkpoint-{names['trainer'].state.global_step}/pruning.pt").is_file()


@python.of("ted_stream/trainers/huggingface/README.md", "class Arguments(")
def _(code: str, given: Given) -> None:
    names: dict[str, Any] = {}
    exec(code, names)
    args = names["Arguments"](output_dir=str(given.folder), report_to=[], use_cpu=True, pruning="TED(0.5)")
    assert args.to_dict()["pruning"] == "TED(0.5)"


@python.of("ted_stream/trainers/huggingface/README.md", "trl import SFTTrainer")
def _(code: str, given: Given) -> None:
    args = SFTConfig(**settings(str(given.folder)))
    names: dict[str, Any] = {"model": tiny_lm(), "args": args, "data": instructions(), "PruningMixin": PruningMixin}
    code = swapped(
        keeping_the_trainer(code, "PrunedSFTTrainer"), {"pruning=": "processing_class=tokenizer(), pruning="}
    )
    with pytest.warns(UserWarning, match="measures samples at their logits"):
        exec(code, names | {"TED": TED, "tokenizer": tokenizer}, names)
    assert min(record.kept for record in names["trainer"].pruning_records) < 30


@python.of("pipelines/corpora/README.md", "PaddingCollator")
def _(code: str, given: Given) -> None:
    """What was prepared is read, padded and pruned; its prompts are left out of the loss."""
    lines = [f'{{"prompt": "{at} and {at}", "response": "is {2 * at}"}}' for at in range(40)]
    Path("pairs.jsonl").write_text("\n".join(lines))
    prepare_instructions("data/mine", "pairs.jsonl", test_fraction=0.2, train_tokenizer_size=300)
    args = arguments(given.folder)
    names: dict[str, Any] = {"model": tiny_lm(vocabulary=300), "args": args, "tokenizer": tokenizer()}
    exec(keeping_the_trainer(code, "PrunedTrainer"), names)
    assert (names["trainer"].train_dataset[0]["labels"] == -100).any()
    kept = [record.kept for record in names["trainer"].pruning_records]
    assert kept[0] == 32 > min(kept)
    assert kept[-1] < 32  # without annealing


@python.of("pipelines/corpora/README.md", "trl import SFTConfig")
def _(code: str, given: Given) -> None:
    """The prepared samples arrive as they are, a long one too, and the ids of the lists are those of the dataset."""
    answers = [f"is {2 * at}" for at in range(39)] + ["and so on" * 800]
    lines = [f'{{"prompt": "{at} and {at}", "response": "{answer}"}}' for at, answer in enumerate(answers)]
    Path("pairs.jsonl").write_text("\n".join(lines))
    Path("test.jsonl").write_text(lines[0])
    prepare_instructions("data/mine", "pairs.jsonl", test="test.jsonl", train_tokenizer_size=300, max_length=2048)
    names: dict[str, Any] = {"model": tiny_lm(vocabulary=300)}
    names["tokenizer"] = AutoTokenizer.from_pretrained("data/mine/tokenizer")
    own = {name: value for name, value in settings("").items() if name not in ("output_dir", "max_length")}
    names["own"] = own
    code = swapped(keeping_the_trainer(code, "PrunedSFTTrainer"), {'"runs/sft", ': '"runs/sft", **own, '})
    with pytest.warns(UserWarning, match="measures samples at their logits"):
        exec(code, names)
    trainer, prepared = names["trainer"], names["samples"]
    assert len(trainer.train_dataset) == len(prepared) == 40
    for name in ("input_ids", "labels"):
        assert [sample[name] for sample in trainer.train_dataset] == [sample[name].tolist() for sample in prepared]
    longest = max(range(40), key=lambda at: len(prepared[at]["input_ids"]))
    (labels,) = trainer.data_collator([trainer.train_dataset[longest]])["labels"]
    assert len(labels) > 1024
    assert labels.tolist() == prepared[longest]["labels"].tolist()
    assert min(record.kept for record in trainer.pruning_records) < 40


# A loop


@python.of("README.md", "with Pruner(")
@python.of("ted_stream/trainers/loop/README.md", "with Pruner(")
def _(code: str, given: Given) -> None:
    del given
    model = torch.nn.Linear(6, 3)
    names: dict[str, Any] = {
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), 0.1),
        "dataset": rows(),
        "DataLoader": DataLoader,
        "CosineAnnealingLR": torch.optim.lr_scheduler.CosineAnnealingLR,
        "cross_entropy": torch.nn.functional.cross_entropy,
    }
    exec(swapped(code, {"batch_size=256": "batch_size=8", "num_workers=8": "num_workers=0", "90": "4"}), names)
    kept = [record.kept for record in names["pruner"].records]
    assert (kept[0], len(kept)) == (64, 4)
    assert min(kept) < 64
    if "scheduler" in names:
        assert abs(names["optimizer"].param_groups[0]["lr"]) < 1e-9
    assert len(list(Path().glob("ted_stream_runs/*/manifest.parquet"))) == 1


@python.of("ted_stream/trainers/loop/README.md", "writer.add_scalar(")
def _(code: str, given: Given) -> None:
    """Each metric of an epoch, once; the table below tells of all."""
    dataset, model, told = rows(), torch.nn.Linear(6, 3), dict[str, float]()
    loader = DataLoader(dataset, batch_size=8, sampler=PrunedSampler(dataset))
    writer = SimpleNamespace(add_scalar=lambda name, value, step: told.update({name: value}))
    with Pruner(TED(0.6), model, loader, epochs=4, folder=given.folder / "run") as pruner:
        for epoch in pruner:
            for x, y in pruner.batches():
                pruner.loss(torch.nn.functional.cross_entropy(model(x), y)).backward()
            told.clear()
            exec(code, {"rank": 0, "pruner": pruner, "writer": writer, "epoch": epoch})
            assert told == pruner.metrics
    table = text_of("ted_stream/trainers/loop/README.md")
    assert all(f"`{name.removeprefix('pruning/')}`" in table for name in told if "score_q" not in name)


@python.of("ted_stream/trainers/loop/README.md", "state = {")
@python.of("ted_stream/trainers/loop/README.md", "load_state_dict(state[name])")
def _(code: str, given: Given) -> None:
    """From the state that one block saves, by the lines of the other."""
    blocks = [block.code for block in blocks_of("ted_stream/trainers/loop/README.md")]
    (saves,), (loads,) = ([at for at in blocks if words in at] for words in ("state = {", "load_state_dict(state["))
    assert code in (saves, loads)
    dataset = rows()

    def parts() -> dict[str, Any]:
        torch.manual_seed(0)
        model = torch.nn.Linear(6, 3)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        loader = DataLoader(dataset, batch_size=8, sampler=PrunedSampler(dataset))
        pruner = Pruner(TED(0.6), model, loader, epochs=4, folder=given.folder / "run", run_name="run")
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
                        exec(saves, names | {"rank": 0, "torch": torch})
        return names["model"].weight

    expected, again = train(parts(), save_after=11), parts()
    exec(loads, again | {"torch": torch})
    assert torch.equal(train(again), expected)


class Noisy(TensorDataset):
    """Rows that augmentation changes."""

    def __getitem__(self, index: Any) -> Any:
        x, y = super().__getitem__(index)
        return x + torch.randn(6), y


@python.of("ted_stream/trainers/README.md", "SeededSamples(dataset)")
def _(code: str, given: Given) -> None:
    """An epoch of samples is the same again, without workers too."""
    del given
    names: dict[str, Any] = {"DataLoader": DataLoader}
    batches = []
    for workers in (1, 0):
        exec(swapped(code, {"num_workers=8": f"num_workers={workers}"}), names | {"dataset": Noisy(*ROWS)}, names)
        batches.append(torch.cat([x for x, _ in names["loader"]]))
    assert torch.equal(*batches)


ROWS = torch.zeros(64, 6), torch.arange(64) % 3


# Reading


@python.of("ted_stream/reading/README.md", "train = PrunedStreamingDataset(")
def _(code: str, given: Given) -> None:
    Path("remote").mkdir()
    Path("remote/train").symlink_to(given.fixture("make_mds")(64))
    names: dict[str, Any] = {}
    exec(swapped(code, {"s3://bucket/imagenet": "remote", "/nvme/imagenet": "local", "256": "8"}), names)
    assert sorted(sample["id"] for sample in names["train"]) == list(range(64))
    assert list(Path("local/train").glob("*.mds"))


@python.of("ted_stream/reading/README.md", "class Mine(Prunable")
def _(code: str, given: Given) -> None:
    del given
    with MDSWriter(out="images", columns={"x": "png", "y": "int"}) as writer:
        for at in range(12):
            writer.write({"x": Image.new("RGB", (4, 4)), "y": at})
    layout = PrunedStreamingDataset(local="images", batch_size=8).layout
    in_run("r1", 1, SkipList.from_pruned_ids(layout, np.arange(9), epoch=1, keep_ratio=0.25, method="TED", run="r1"))
    names: dict[str, Any] = {}
    exec(code, names)
    skip_list = "ted_stream_runs/r1/skip_lists/ep0001.parquet"
    mine = names["Mine"](local="images", batch_size=3, num_canonical_nodes=1, skip_list=skip_list)
    assert sorted(y for _, y in mine) == [9, 10, 11]


@python.of("ted_stream/reading/README.md", "drop_pruned(")
def _(code: str, given: Given) -> None:
    del given
    for shard in range(2):
        with TarWriter(f"x-{shard}.tar") as writer:
            for index in range(8 * shard, 8 * shard + 8):
                writer.write({"__key__": f"{index:03}", "txt": f"sample {index}"})
    index_tars("x-{0..1}.tar")
    layout = PrunedStreamingDataset(local=".", batch_size=8).layout
    pruned = np.array([0, 3, 7, 8, 15])
    skip_list = SkipList.from_pruned_ids(layout, pruned, epoch=80, keep_ratio=0.7, method="TED", run="r1")
    in_run("r1", 80, skip_list)
    names: dict[str, Any] = {"urls": "x-{0..1}.tar"}
    exec(code, names)
    for pipeline in ("samples", "seeking"):
        found = sorted(sample["txt"] for sample in names[pipeline])
        assert found == sorted(f"sample {index}" for index in skip_list.kept_ids()), pipeline


@python.of("ted_stream/reading/README.md", "later = PrunedSampler(dataset")
def _(code: str, given: Given) -> None:
    del given
    dataset = TensorDataset(torch.arange(100))
    layout = PrunedSampler(dataset).layout
    in_run("r2", 6, SkipList.from_pruned_ids(layout, np.arange(60), epoch=6, keep_ratio=0.4, method="TED", run="r2"))
    names: dict[str, Any] = {"dataset": dataset, "DataLoader": DataLoader}
    exec(code, names)
    assert sorted(torch.cat([batch for (batch,) in names["loader"]]).tolist()) == list(range(100))
    assert sorted(names["later"]) == list(range(60, 100))


@python.of("ted_stream/skip_list/README.md", "skip_list=")
def _(code: str, given: Given) -> None:
    shards = given.fixture("make_mds")(64)
    layout = PrunedStreamingDataset(local=shards, batch_size=8).layout
    in_run("r1", 80, SkipList.from_pruned_ids(layout, np.arange(24), epoch=80, keep_ratio=0.6, method="TED", run="r1"))
    stand_ins = {'local="/nvme/imagenet", split="train"': f'local="{shards}"', "batch_size=256": "batch_size=8"}
    names: dict[str, Any] = {}
    exec(swapped(code, {**stand_ins, "\nPrunedStreamingDataset(": "\nsubset = PrunedStreamingDataset("}), names)
    assert sorted(sample["id"] for sample in names["subset"]) == list(range(24, 64))


@python.of("ted_stream/skip_list/README.md", "BitMap.deserialize")
def _(code: str, given: Given) -> None:
    """The block runs without this package and prints the pruned positions."""
    layout = PrunedStreamingDataset(local=given.fixture("make_mds")(120), batch_size=8).layout
    pruned = np.array([0, 7, 50, 51, 52, 119])
    skip_list = SkipList.from_pruned_ids(layout, pruned, epoch=7, keep_ratio=0.95, method="TED", run="r1")
    write_skip_list(skip_list, "ep0007.parquet")
    code += "\nimport sys; assert not {'ted_stream', 'torch'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    expected = [
        f"{layout.stream_keys[0]} {shard.name} {[int(p - start) for p in pruned if start <= p < start + shard.samples]}"
        for shard, start in zip(layout.shards, layout.shard_offsets.tolist(), strict=True)
    ]
    assert done.stdout.splitlines() == expected


# Data of one's own


@python.of("pipelines/corpora/README.md", "class Photos")
def _(code: str, given: Given) -> None:
    del given
    prepare_imagenet("data/photos", write_folders(Path("photos"), per_class=5, test_per_class=1))
    names: dict[str, Any] = {"Image": Image, "BytesIO": BytesIO, "augment": lambda image: np.asarray(image).shape}
    exec(code, names)
    samples = list(names["train"])
    assert sorted(label for _, label in samples) == sorted(5 * list(range(4)))
    assert all(shape[2] == 3 for shape, _ in samples)


@python.of("pipelines/corpora/README.md", 'name="mine-2024-11"')
def _(code: str, given: Given) -> None:
    del given
    names: dict[str, Any] = {"dataset": rows(), "DataLoader": DataLoader}
    exec(swapped(code, {"num_workers=8": "num_workers=0"}), names)
    assert sum(len(y) for _, y in names["loader"]) == 64
    assert "mine-2024-11" in names["loader"].sampler.layout.shards[0].name


@python.of("pipelines/corpora/README.md", "MDSWriter(")
def _(code: str, given: Given) -> None:
    del given
    names: dict[str, Any] = {}
    exec(code, names)
    assert sorted(sample["x"][0] for sample in names["train"]) == list(range(1000))
    assert pq.read_table("mine/train/origins.parquet")["key"].to_pylist()[-1] == "999"


# The library


@python.of("ted_stream/README.md", "planned_save_ratio")
def _(code: str, given: Given) -> None:
    output = given.fixture("capsys")
    exec(code, {})
    shown = float(output.readouterr().out)
    assert 0.5 < shown < 0.7


def test_the_evidence_names_the_ratio_that_the_default_schedule_has() -> None:
    text = (Path(__file__).parents[2] / "pipelines/benches/README.md").read_text()
    found = re.search(r"prune_ratio=(\S+)` \(a save ratio of (\S+) at (\d+) epochs", text)
    assert found is not None
    planned = RandomPruning(float(found[1])).keep_ratios.planned_save_ratio(
        num_samples=50_000, num_epochs=int(found[3])
    )
    assert f"{planned:.2f}" == found[2]


# After all entries, by which blocks are marked as long.
@pytest.mark.parametrize("block", python.cases())
def test_a_block(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    python.run(block, Given(tmp_path, request.getfixturevalue))


def test_no_entry_is_without_a_block() -> None:
    assert python.unused() == []
