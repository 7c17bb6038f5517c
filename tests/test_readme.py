"""The README's code does what the README says."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from composer.models import ComposerClassifier
from composer.optim import CosineAnnealingScheduler
from torch.utils.data import DataLoader, TensorDataset
from webdataset.writer import TarWriter

from ted_stream import PrunedSampler, PrunedStreamingDataset, SkipList, write_skip_list
from ted_stream.reading.tar_index import index_tars

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)


def block(words: str) -> str:
    (found,) = [code for code in BLOCKS if words in code]
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
        block("Trainer(model=model"),
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


def test_the_loop(tmp_path: Path, monkeypatch: Any) -> None:
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
    exec(
        swapped(block("with Pruner("), {"batch_size=256": "batch_size=8", "num_workers=8": "num_workers=0", "90": "4"}),
        names,
    )
    assert names["pruner"].records[0].kept == 64
    assert min(record.kept for record in names["pruner"].records) < 64
    assert abs(optimizer.param_groups[0]["lr"]) < 1e-9
    assert len(list(tmp_path.glob("ted_stream_runs/*/manifest.parquet"))) == 1
