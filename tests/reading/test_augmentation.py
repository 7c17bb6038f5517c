"""RandomResizedCrop, flips and ColorJitter of images in tars: the same pixels wherever a run goes on."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tars import NUM_SAMPLES, write_shards
from two_ranks_augmented import BATCH_SIZE, by_id, make_dataset, read

from ted_stream.reading.tar_index import index_tars

SCRIPT = Path(__file__).with_name("two_ranks_augmented.py")
SEEN = 3  # batches of the second epoch


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tars")
    index_tars(write_shards(folder))
    return folder


@pytest.fixture(scope="module")
def epochs(folder: Path) -> list[dict[int, bytes]]:
    """Two, undisturbed."""
    dataset = make_dataset(folder)
    return [by_id(read(dataset, 0)) for _ in range(2)]


def test_epochs_and_samples_differ(epochs: list[dict[int, bytes]]) -> None:
    pixels = [pixels for epoch in epochs for pixels in epoch.values()]
    assert len(pixels) == len(set(pixels)) == 2 * NUM_SAMPLES


@pytest.mark.quick("0", "1")
@pytest.mark.parametrize("workers", [0, 1, 4])
def test_a_run_that_goes_on_sees_the_same_pixels(workers: int, folder: Path, epochs: list[dict[int, bytes]]) -> None:
    dataset = make_dataset(folder)
    torch.manual_seed(workers)
    loader = read(dataset, workers)
    assert by_id(loader) == epochs[0]
    iterator = iter(loader)
    seen = by_id(next(iterator) for _ in range(SEEN))
    resumed = make_dataset(folder)
    resumed.load_state_dict(dataset.state_dict(SEEN * BATCH_SIZE, True))
    rest = by_id(read(resumed, workers))
    assert not seen.keys() & rest.keys()
    assert {**seen, **rest} == epochs[1]


@pytest.mark.long
def test_two_ranks_go_on_with_the_same_pixels(
    folder: Path, epochs: list[dict[int, bytes]], launch: Callable[..., None], tmp_path: Path
) -> None:
    dataset = make_dataset(folder)
    by_id(read(dataset, 0))
    iterator = iter(read(dataset, 0))
    seen = by_id(next(iterator) for _ in range(SEEN))
    torch.save(dataset.state_dict(SEEN * BATCH_SIZE, True), tmp_path / "state.pt")
    launch(SCRIPT, folder, tmp_path, ranks=2, launcher="torch")
    ranks = [torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2)]
    for workers in (0, 1):
        rest = ranks[0][workers] | ranks[1][workers]
        assert len(ranks[0][workers]) + len(ranks[1][workers]) == NUM_SAMPLES - len(seen)
        assert {**seen, **rest} == epochs[1]
