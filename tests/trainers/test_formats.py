"""The same images as MDS shards, as WebDataset tars, in a folder and in a bucket: one run, to the last bit."""

import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from composer import Trainer
from composer.models import ComposerClassifier
from PIL import Image
from small_run import BATCH_SIZE, make_ted
from streaming import MDSWriter
from torch import nn

from ted_stream import PrunedStreamingDataset, read_skip_list
from ted_stream.reading.tar_index import index_tars

PER_SHARD, SHARDS, SIDE = 24, 4, 8
BY_RANGES: dict[str, Any] = {"request_latency": 0, "min_gap": 0}


class Images(PrunedStreamingDataset):
    """(image, label) samples, and the ids that were read in this process, in order."""

    def __init__(self, **arguments: Any) -> None:
        self.read: list[int] = []
        super().__init__(**arguments, shuffle=True, batch_size=BATCH_SIZE)

    def __getitem__(self, at: Any) -> Any:
        self.read.append(int(at))
        sample = super().__getitem__(at)
        return torch.from_numpy(np.array(sample["png"], np.float32)), int(sample["cls"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (PER_SHARD * SHARDS, SIDE, SIDE, 3), np.uint8)
    labels = (images.mean((1, 2, 3)) > 127.5).astype(int).tolist()
    columns = {"png": f"ndarray:uint8:{SIDE},{SIDE},3", "cls": "int"}
    with MDSWriter(out=str(folder / "mds"), columns=columns, size_limit=PER_SHARD * 204 + 400) as writer:
        for image, label in zip(images, labels, strict=True):
            writer.write({"png": image, "cls": label})
    (folder / "tar").mkdir()
    for shard in range(SHARDS):
        with tarfile.open(folder / "tar" / f"x-{shard}.tar", "w") as tar:
            for index in range(shard * PER_SHARD, (shard + 1) * PER_SHARD):
                png = io.BytesIO()
                Image.fromarray(images[index]).save(png, "png")
                for extension, data in (("png", png.getvalue()), ("cls", str(labels[index]).encode())):
                    member = tarfile.TarInfo(f"{index:05}.{extension}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    index_tars(str(folder / "tar" / "x-{0..3}.tar"))
    return folder


@pytest.mark.long
def test_one_run_whatever_the_shards(
    folder: Path, s3: Any, make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    for path in (*(folder / "mds").iterdir(), *(folder / "tar").iterdir()):
        s3.upload_file(str(path), "training", f"{path.parent.name}/{path.name}")

    def run(name: str, **arguments: Any) -> tuple[torch.Tensor, list[int], list[list[int]]]:
        dataset = Images(**arguments)
        assert dataset.samples_per_shard.tolist() == [PER_SHARD] * SHARDS
        torch.manual_seed(0)
        model = ComposerClassifier(nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE**2, 2)), num_classes=2)
        ted = make_ted(0.6, annealing=0, folder=str(tmp_path / name))
        trainer = make_trainer("", [ted], model=model, dataset=dataset, learning_rate=1e-5, max_duration="5ep")
        trainer.fit()
        trainer.close()
        lists = [read_skip_list(tmp_path / name / record.skip_list).kept_ids().tolist() for record in ted.records]
        return torch.cat([p.detach().flatten() for p in model.parameters()]), dataset.read, lists

    weights, read, lists = run("mds", local=str(folder / "mds"))
    assert len(lists[-1]) < PER_SHARD * SHARDS / 2
    caches = {"bucket of mds": "mds", "bucket of tars": "tar"}
    others = {"tars": run("tars", local=str(folder / "tar"))}
    for name, prefix in caches.items():
        local = str(tmp_path / f"cache of {name}")
        others[name] = run(name, remote=f"s3://training/{prefix}", local=local, **BY_RANGES)
    for other_weights, other_read, other_lists in others.values():
        assert other_lists == lists
        assert other_read == read
        assert torch.equal(other_weights, weights)
    for name, prefix in caches.items():  # later, on the subset alone: by ranges
        local = tmp_path / f"later {name}"
        later = Images(
            remote=f"s3://training/{prefix}",
            local=str(local),
            skip_list=str(tmp_path / name / "skip_lists" / "ep0004.parquet"),
            **BY_RANGES,
        )
        assert len(list(later)) == len(lists[-1])
        assert {os.path.splitext(path)[1] for path in os.listdir(local)} >= {".sparse", ".present"}
