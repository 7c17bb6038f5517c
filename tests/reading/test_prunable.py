"""What a prunable dataset is to its user."""

import json
import pickle
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from streaming import MDSWriter, Stream, StreamingDataset
from streaming.vision.base import StreamingVisionDataset
from torch.utils.data import DataLoader

from ted_stream import Prunable, PrunedStreamingDataset, SkipList, SkipListError, write_skip_list
from ted_stream.reading import attach_sample_id

NUM_SAMPLES = 120


@pytest.fixture(scope="module")
def folder(make_mds: Callable[..., str]) -> str:
    return make_mds(NUM_SAMPLES)


def skip_list_of(dataset: Prunable, pruned: Any) -> SkipList:
    ids = np.array(pruned, np.int64)
    ratio = 1 - len(ids) / dataset.layout.num_samples
    return SkipList.from_pruned_ids(dataset.layout, ids, epoch=3, keep_ratio=ratio, method="test", run="test")


def test_stock_attributes_and_samples_are_kept(folder: str) -> None:
    stock = StreamingDataset(local=folder, batch_size=4)
    ours = PrunedStreamingDataset(local=folder, batch_size=4)
    assert (len(ours), ours.size, ours.epoch_size) == (len(stock), stock.size, stock.epoch_size)
    assert str(ours[7]) == str(stock[7])
    assert str(ours[3:6]) == str(stock[3:6])
    assert [str(sample) for sample in ours] == [str(sample) for sample in stock]


def test_ids_in_mappings_tuples_and_bare_samples(folder: str) -> None:
    assert attach_sample_id({"x": 1}, 5) == {"x": 1, "sample_id": 5}
    assert attach_sample_id((1, 2), 5) == attach_sample_id([1, 2], 5) == (1, 2, 5)
    assert attach_sample_id("text", 5) == ("text", 5)
    with pytest.raises(ValueError, match=r"'sample_id' of their own.*rename"):
        attach_sample_id({"sample_id": 1}, 5)

    class Tuples(PrunedStreamingDataset):
        def __getitem__(self, at: Any) -> Any:
            sample = super().__getitem__(at)
            return sample["x"], sample["id"]

    dataset = Tuples(local=folder, batch_size=4, shuffle=True, sample_ids=True)
    samples = list(dataset)
    assert [sample_id for _, _, sample_id in samples] == [stored for _, stored, _ in samples]
    assert sorted(stored for _, stored, _ in samples) == list(range(NUM_SAMPLES))
    dicts = PrunedStreamingDataset(local=folder, batch_size=4, sample_ids=True)
    assert [sample["sample_id"] for sample in dicts] == list(range(NUM_SAMPLES))


def test_a_vision_dataset_becomes_prunable_in_one_line(tmp_path: Path) -> None:
    class Mine(Prunable, StreamingVisionDataset):
        pass

    with MDSWriter(out=str(tmp_path), columns={"x": "png", "y": "int"}) as writer:
        for index in range(12):
            writer.write({"x": Image.fromarray(np.full((4, 4, 3), index, np.uint8)), "y": index})
    arguments: dict[str, Any] = {
        "local": str(tmp_path),
        "batch_size": 4,
        "num_canonical_nodes": 1,
        "transform": lambda image: image.resize((2, 2)),
    }
    stock = list(StreamingVisionDataset(**arguments))
    dataset = Mine(**arguments, sample_ids=True)
    assert [(label, sample_id) for _, label, sample_id in dataset] == [(label, label) for _, label in stock]
    dataset.activate(skip_list_of(dataset, [0, 5]), sample_ids=False)
    assert [label for _, label in dataset] == [1, 2, 3, 4, 6, 7, 8, 9, 10, 11]
    assert next(iter(dataset))[0].size == (2, 2)


@pytest.mark.long
def test_a_fixed_list_from_a_file(folder: str, tmp_path: Path) -> None:
    pruned = list(range(0, NUM_SAMPLES, 2))
    plain = PrunedStreamingDataset(local=folder, batch_size=4)
    write_skip_list(skip_list_of(plain, pruned), tmp_path / "list.parquet")
    for workers in (0, 2):
        subset = PrunedStreamingDataset(
            local=folder, batch_size=4, shuffle=True, skip_list=str(tmp_path / "list.parquet")
        )
        loader = DataLoader(subset, batch_size=4, num_workers=workers, collate_fn=list)
        assert (len(subset), len(loader)) == (60, 15)
        for _ in range(2):
            assert sorted(sample["id"] for batch in loader for sample in batch) == list(range(1, NUM_SAMPLES, 2))
    with pytest.raises(FileNotFoundError, match=r"absent\.parquet"):
        PrunedStreamingDataset(local=folder, batch_size=4, skip_list=str(tmp_path / "absent.parquet"))
    subset = PrunedStreamingDataset(local=folder, batch_size=4, skip_list=tmp_path / "list.parquet")
    assert sorted(sample["id"] for sample in subset) == list(range(1, NUM_SAMPLES, 2))


@pytest.mark.long
def test_weights_that_nobody_would_apply_are_refused(folder: str, tmp_path: Path) -> None:
    plain = PrunedStreamingDataset(local=folder, batch_size=4)
    weighted = replace(skip_list_of(plain, range(100)), weights=np.full(20, 5, np.float32))
    write_skip_list(weighted, tmp_path / "list.parquet")
    for given in (weighted, str(tmp_path / "list.parquet")):
        with pytest.raises(ValueError, match=r"PrunedStreamingDataset has no loss .*without_weights\(\)"):
            PrunedStreamingDataset(local=folder, batch_size=4, skip_list=given)
    subset = PrunedStreamingDataset(local=folder, batch_size=4, skip_list=weighted.without_weights())
    plain.activate(weighted, sample_ids=True)  # by one who applies them
    for dataset in (subset, plain):
        loader = DataLoader(dataset, batch_size=4, num_workers=1, collate_fn=list)
        assert [sample["id"] for batch in loader for sample in batch] == list(range(100, 120))


@pytest.mark.long
def test_a_list_changed_between_epochs_reaches_persistent_workers(folder: str) -> None:
    dataset = PrunedStreamingDataset(local=folder, batch_size=4, shuffle=True)
    loader = DataLoader(dataset, batch_size=4, num_workers=2, persistent_workers=True, collate_fn=list)
    for pruned in ([], range(30), range(90, NUM_SAMPLES), range(110)):
        dataset.activate(skip_list_of(dataset, pruned), sample_ids=True)
        read = [sample["sample_id"] for batch in loader for sample in batch]
        assert sorted(read) == sorted(set(range(NUM_SAMPLES)) - set(pruned))
        assert len(dataset) == len(read)
    dataset.activate(None, sample_ids=False)
    assert sorted(sample["id"] for batch in loader for sample in batch) == list(range(NUM_SAMPLES))


@pytest.mark.long
def test_spawned_workers_see_the_list(folder: str) -> None:
    dataset = PrunedStreamingDataset(local=folder, batch_size=4, shuffle=True)
    assert [dataset[index]["id"] for index in (0, 1)] == [0, 1]
    dataset.activate(skip_list_of(dataset, range(100)), sample_ids=True)
    copy = pickle.loads(pickle.dumps(dataset))
    loader = DataLoader(dataset, batch_size=4, num_workers=1, multiprocessing_context="spawn")
    assert sorted(torch.cat([batch["sample_id"] for batch in loader]).tolist()) == list(range(100, NUM_SAMPLES))
    assert copy.layout == dataset.layout


@pytest.mark.long
def test_streams_are_pruned_after_their_proportions_chose(make_mds: Callable[..., str]) -> None:
    folders = [make_mds(80, seed=1), make_mds(40, seed=2)]

    def dataset(**arguments: Any) -> PrunedStreamingDataset:
        streams = [Stream(local=folder, proportion=share) for folder, share in zip(folders, (0.25, 0.75), strict=True)]
        return PrunedStreamingDataset(streams=streams, epoch_size=100, batch_size=4, shuffle=True, **arguments)

    pruned = {*range(0, 80, 4), *range(80, 120, 3)}
    all_ids = [[sample["sample_id"] for sample in epoch] for epoch in _epochs(dataset(sample_ids=True), 2)]
    subset = dataset(sample_ids=True)
    subset_list = skip_list_of(subset, sorted(pruned))
    for chosen in all_ids:
        expected = Counter(sample_id for sample_id in chosen if sample_id not in pruned)
        subset.activate(subset_list, sample_ids=True)
        length = len(subset)
        assert Counter(sample["sample_id"] for sample in subset) == expected
        assert length == expected.total()
    assert sum(sample_id >= 80 for sample_id in all_ids[0]) == 75
    with pytest.raises(ValueError, match="sampling_method='fixed'"):
        dataset(skip_list=subset_list)
    fixed = dataset(skip_list=subset_list, sampling_method="fixed", sample_ids=True)
    for epoch in _epochs(fixed, 3):
        assert len(epoch) == len(fixed)
        assert not pruned & {sample["sample_id"] for sample in epoch}
    # The list belongs to the shards, not to their order: the streams may be given the other way round.
    turned = PrunedStreamingDataset(
        streams=[Stream(local=folder) for folder in reversed(folders)], batch_size=4, skip_list=subset_list
    )
    kept = {(sample["id"], sample["x"].tobytes()) for sample in turned}
    straight = PrunedStreamingDataset(streams=[Stream(local=folder) for folder in folders], batch_size=4)
    assert kept == {
        (sample["id"], sample["x"].tobytes()) for index, sample in enumerate(straight) if index not in pruned
    }


def _epochs(dataset: PrunedStreamingDataset, count: int) -> list[list[Any]]:
    return [list(dataset) for _ in range(count)]


def test_lists_that_do_not_fit_are_refused(folder: str, make_mds: Callable[..., str]) -> None:
    dataset = PrunedStreamingDataset(local=folder, batch_size=4)
    other = PrunedStreamingDataset(local=make_mds(NUM_SAMPLES + 1), batch_size=4)
    with pytest.raises(SkipListError, match=f"{other.layout.fingerprint}.*{dataset.layout.fingerprint}"):
        dataset.activate(skip_list_of(other, [1]), sample_ids=False)
    with pytest.raises(ValueError, match=r"leaves 0 samples.*Prune less"):
        dataset.activate(skip_list_of(dataset, range(NUM_SAMPLES)), sample_ids=False)
    wide = PrunedStreamingDataset(local=folder, batch_size=4, shuffle=True, num_canonical_nodes=8)
    with pytest.raises(ValueError, match=r"leaves 7 samples.*num_canonical_nodes = 8"):
        wide.activate(skip_list_of(wide, range(NUM_SAMPLES - 7)), sample_ids=False)
    wide.activate(skip_list_of(wide, range(NUM_SAMPLES - 8)), sample_ids=False)
    assert sorted(sample["id"] for sample in wide) == list(range(NUM_SAMPLES - 8, NUM_SAMPLES))
    for method in ("stratified", "per_stream", "device_per_stream"):
        stratified = PrunedStreamingDataset(local=folder, batch_size=4, batching_method=method)
        with pytest.raises(ValueError, match=f"'{method}'.*batching_method='random'"):
            stratified.activate(skip_list_of(stratified, [1]), sample_ids=False)


def test_a_tampered_active_list_is_refused(folder: str) -> None:
    """Workers check the digest of what they are told to read."""
    dataset = PrunedStreamingDataset(local=folder, batch_size=4)
    dataset.activate(skip_list_of(dataset, [1, 2]), sample_ids=False)
    path = dataset._node_folder / json.loads((dataset._node_folder / "active.json").read_text())["skip_list"]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    dataset._planned = None  # as in a worker that lives on
    with pytest.raises(SkipListError, match="damaged"):
        next(iter(dataset))


def test_nothing_is_left_behind_on_the_node(folder: str) -> None:
    dataset = PrunedStreamingDataset(local=folder, batch_size=4)
    active = dataset._node_folder
    assert active.exists()
    del dataset
    assert not active.exists()
