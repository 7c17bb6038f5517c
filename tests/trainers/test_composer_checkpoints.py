"""A kill between Composer's removing and making the link to its newest checkpoint loses nothing."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ted_stream import TED, DataPruning
from ted_stream.trainers.composer.checkpoints import link_newest


def save(folder: Path, *names: str) -> None:
    for name in names:
        torch.save({"name": name}, folder / name)


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.long
@pytest.mark.parametrize(
    "names", [{}, {"save_filename": "{run_name}_b{batch}.e{epoch}.pt", "save_latest_filename": "{run_name}.last"}]
)
def test_autoresume_goes_on_from_the_newest_checkpoint(
    names: dict[str, str], make_mds: Callable[..., str], make_trainer: Callable[..., Any], tmp_path: Path
) -> None:
    def trainer() -> Any:
        pruning = DataPruning(TED(0.5), folder=tmp_path / "run")
        saved = {"save_folder": str(checkpoints), "save_overwrite": True, "autoresume": True}
        return make_trainer(data, [pruning], max_duration="3ep", run_name="r", **saved, **names)

    data, checkpoints = make_mds(60), tmp_path / "checkpoints"
    lived = trainer()
    lived.fit()
    lived.close()
    latest = checkpoints / ("r.last" if names else "latest-rank0.pt")
    latest.resolve().unlink()
    latest.unlink()
    with pytest.warns(UserWarning, match=re.escape(f"{latest} is gone")):
        resumed = trainer()
    assert resumed.state.timestamp.epoch == 2
    resumed.fit()
    resumed.close()
    found = resumed.state.model.state_dict()
    for name, expected in lived.state.model.state_dict().items():
        assert torch.equal(found[name], expected), name


def test_the_newest_is_that_of_most_batches_which_is_whole(tmp_path: Path) -> None:
    save(tmp_path, "ep0-ba9-rank0.pt", "ep1-ba10-rank0.pt", "ep1-ba11-rank0.pt", "ep9-ba99-rank1.pt", "other.pt")
    (tmp_path / "ep9-ba98-rank0.pt").mkdir()
    half(tmp_path / "ep1-ba11-rank0.pt")
    latest = tmp_path / "latest-rank0.pt"
    latest.symlink_to("ep5-ba50-rank0.pt")  # which is gone
    with pytest.warns(UserWarning, match=r"again, ep1-ba10-rank0\.pt\. Remove"):
        link_newest(latest)
    assert torch.load(latest)["name"] == "ep1-ba10-rank0.pt"
    save(tmp_path, "ep2-ba20-rank0.pt")
    link_newest(latest)  # without a warning: there is a link
    assert torch.load(latest)["name"] == "ep1-ba10-rank0.pt"


@pytest.mark.parametrize("name", ["ep{epoch}-ba{batch}-rank0.pt", "ep{epoch}.pt"])
def test_a_run_without_a_whole_checkpoint_has_none(name: str, tmp_path: Path) -> None:
    link_newest(tmp_path / "none" / "latest", name)
    save(tmp_path, "ep0-ba1-rank0.pt")
    half(tmp_path / "ep0-ba1-rank0.pt")
    link_newest(tmp_path / "latest", name)
    assert [path.name for path in tmp_path.iterdir()] == ["ep0-ba1-rank0.pt"]
