import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from made_runs import layout_of, make_run
from streaming import MDSWriter

from ted_stream.export import (
    Selection,
    comparison_of,
    export_run,
    find_origins,
    origins,
    summary_of,
    write_origins,
    write_scores,
)
from ted_stream.export.dataset_files import open_dataset
from ted_stream.export.run_files import read_running_scores
from ted_stream.skip_list import DatasetLayout, SkipList, write_skip_list

SIZE = 200
LAYOUT = layout_of(SIZE)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory) -> tuple[Path, np.ndarray]:
    """A dataset whose labels lie behind columns of variable size."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    labels = np.where(np.arange(SIZE) < 40, 2, rng.integers(0, 2, SIZE))
    columns = {"aside": "uint16", "bytes": "bytes", "label": "int8", "text": "str"}
    with MDSWriter(out=str(folder / "train"), columns=columns, size_limit=2000, hashes=["sha1"]) as writer:
        for at, label in enumerate(labels):
            row = {"aside": np.uint16(at), "bytes": b"x" * (at % 7), "label": np.int8(label), "text": "ü" * (at % 5)}
            writer.write(row)
    description = {"format": 1, "kind": "images", "name": "three", "samples": {"train": SIZE}, "classes": ["a", "b"]}
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder, labels


def test_epochs_of_a_run_are_those_of_its_lists(tmp_path: Path) -> None:
    masks = [made.keep_mask() for made in make_run(tmp_path, LAYOUT, choose=lambda e, s, r: r.random(SIZE) < 0.6)]
    rows = summary_of(tmp_path)["epochs"]
    assert [row["epoch"] for row in rows] == list(range(len(masks)))
    forwarded = 0
    for epoch, (row, keep) in enumerate(zip(rows, masks, strict=True)):
        before = masks[epoch - 1] if epoch else np.ones(SIZE, np.bool_)
        forwarded += keep.sum()
        assert (row["kept"], row["real"]) == (keep.sum(), keep.mean())
        assert (row["returned"], row["newly_pruned"]) == ((keep & ~before).sum(), (before & ~keep).sum())
        assert row["save_ratio"] == pytest.approx(1 - forwarded / (SIZE * (epoch + 1)))
        if epoch:
            assert row["overlap"] == pytest.approx((keep & before).sum() / keep.sum())
            assert row["expected_overlap"] == pytest.approx(before.mean())
    assert rows[0]["overlap"] is None


def test_samples_and_shards_of_a_run(tmp_path: Path) -> None:
    lists = make_run(tmp_path, LAYOUT, choose=lambda e, s, r: r.random(SIZE) < 0.6)
    pruned = np.stack([made.keep_mask() for made in lists[1:-1]])
    switches, times = (pruned[1:] != pruned[:-1]).sum(0), pruned.sum(0)
    scores, _ = read_running_scores(tmp_path, layout=LAYOUT)
    found = summary_of(tmp_path, number=7)
    order = np.argsort(-scores, kind="stable")
    assert [row["sample_id"] for row in found["highest"]] == order[:7].tolist()
    assert [row["sample_id"] for row in found["lowest"]] == order[::-1][:7].tolist()
    contested = np.lexsort((np.arange(SIZE), -switches))[:7]
    assert [row["sample_id"] for row in found["contested"]] == contested.tolist()
    for row in (row for which in ("highest", "lowest", "contested") for row in found[which]):
        at = row["sample_id"]
        assert (row["times_kept"], row["switches"]) == (times[at], switches[at])
        assert (row["kept"], row["score"]) == (pruned[-1][at], pytest.approx(scores[at]))
        assert (row["shard"], row["position"]) == (f"shard.{at // 50:05d}.mds", at % 50)
    assert [row["kept"] for row in found["shards"]] == pruned[-1].reshape(4, 50).sum(1).tolist()
    assert [row["mean_share"] for row in found["shards"]] == pytest.approx(pruned.reshape(-1, 4, 50).mean((0, 2)))
    assert found["last_pruned"] == len(lists) - 2
    assert found["scores"]["quantiles"]["0.5"] == pytest.approx(np.median(scores))


def test_classes_are_read_from_the_shards(labelled: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    folder, labels = labelled
    data = open_dataset(folder)
    assert data.layout.num_shards > 2
    assert data.labels().tolist() == labels.tolist()
    keep = (labels != 2) | (np.arange(SIZE) < 1)
    make_run(tmp_path, data.layout, choose=lambda e, s, r: keep)
    found = summary_of(tmp_path, data=folder)
    assert not found["notes"]
    for row in found["classes"]:
        of_class = labels == row["label"]
        assert (row["samples"], row["kept"]) == (of_class.sum(), (of_class & keep).sum())
        assert row["share"] == pytest.approx(keep[of_class].mean())
        assert row["name"] == {0: "a", 1: "b", 2: None}[row["label"]]
        assert row["scarce"] == ([1, 2, 3, 4] if row["label"] == 2 else [])
    splits = summary_of(folder)["splits"]
    assert [(split["name"], split["samples"]) for split in splits] == [("train", SIZE)]
    assert [row["samples"] for row in splits[0]["classes"]] == np.bincount(labels).tolist()


def test_samples_are_called_what_their_owner_calls_them(
    labelled: tuple[Path, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(origins, "CHUNK", 7)  # so that they lie in several row groups
    folder, labels = Path(shutil.copytree(labelled[0], tmp_path / "data")), labelled[1]
    run = tmp_path / "run"
    make_run(run, open_dataset(folder).layout)
    assert {row["file"] for row in summary_of(run, data=folder)["highest"]} == {None}
    write_origins(folder / "train", ((f"{at}.jpg", None if at % 2 else f"key {at}", None) for at in range(SIZE)))
    for name in ("highest", "lowest", "contested"):
        rows = summary_of(run, data=folder)[name]
        assert len(rows) == 10
        for row in rows:
            at = row["sample_id"]
            assert (row["file"], row["key"]) == (f"{at}.jpg", None if at % 2 else f"key {at}")
            assert row["class"] == {0: "a", 1: "b", 2: None}[int(labels[at])]
    (folder / "train" / "origins.parquet").write_bytes(b"no")
    found = summary_of(run, data=folder)
    assert "came from could not be read: " in found["notes"][0]
    assert {row["file"] for row in found["highest"]} == {None}


def test_origins_of_another_number_of_samples_are_refused(labelled: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(labelled[0], tmp_path / "data")) / "train"
    write_origins(folder, ((f"{at}.jpg", None, None) for at in range(SIZE)))
    pq.write_table(pq.read_table(folder / "origins.parquet").slice(1), folder / "origins.parquet")
    found, _ = find_origins(folder, open_dataset(folder).layout)
    for read in (lambda: found.of(np.array([3])), lambda: list(found.batches())):
        with pytest.raises(ValueError, match=f"has {SIZE - 1} rows for {SIZE} samples; write it again"):
            read()


@pytest.mark.parametrize("damage", ["flipped", "short", "label"])
def test_classes_of_a_damaged_shard_are_told_as_unknown(
    damage: str, labelled: tuple[Path, np.ndarray], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(labelled[0], tmp_path / "data"))
    shard = folder / "train" / "shard.00001.mds"
    content = bytearray(shard.read_bytes())
    if damage == "flipped":
        content[7] ^= 0x40  # the beginning of its first sample
    elif damage == "short":
        del content[len(content) // 2 :]
    else:  # sizes of the columns before the label
        first = int.from_bytes(content[4:8], "little")
        content[first + 1] ^= 0x10
    shard.write_bytes(content)
    make_run(tmp_path / "run", open_dataset(folder).layout)
    found = summary_of(tmp_path / "run", data=folder)
    assert f"{shard} is damaged" in found["notes"][0]
    assert not found["classes"]
    assert "is damaged" in summary_of(folder)["splits"][0]["notes"][0]


def test_another_dataset_is_not_taken_for_the_runs_own(labelled: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    make_run(tmp_path, LAYOUT)
    found = summary_of(tmp_path, data=labelled[0])
    assert not found["classes"]
    assert "is another dataset than that of the run" in found["notes"][0]
    gone = summary_of(tmp_path, data=tmp_path / "nowhere")
    assert "could not be read" in gone["notes"][0]


def test_a_killed_run_whose_lists_are_partly_gone(tmp_path: Path) -> None:
    lists = make_run(tmp_path, LAYOUT, epochs=5, planned_epochs=9, finished=False, scored=False)
    (tmp_path / "skip_lists/ep0002.parquet").unlink()
    found = summary_of(tmp_path)
    assert (found["finished"], found["epochs_done"], found["max_epochs"]) == (False, 5, 9)
    assert (found["scores"], found["highest"], found["last_pruned"]) == (None, [], 4)
    assert "The skip-lists of 1 epochs are gone: 2." in found["notes"]
    kept = [made.keep_mask() for made in (lists[1], lists[3], lists[4])]
    by_hand = np.argsort(-((kept[0] != kept[1]).astype(int) + (kept[1] != kept[2])), kind="stable")
    assert [row["sample_id"] for row in found["contested"]] == by_hand[:10].tolist()


def test_a_run_of_no_epoch_yet(tmp_path: Path) -> None:
    make_run(tmp_path, LAYOUT, epochs=0, planned_epochs=4, finished=False)
    found = summary_of(tmp_path)
    assert (found["epochs"], found["shards"], found["contested"]) == ([], [], [])


def test_lists_manifests_and_running_scores(tmp_path: Path) -> None:
    lists = make_run(tmp_path, LAYOUT)
    scores, _ = read_running_scores(tmp_path, layout=LAYOUT)
    found = summary_of(tmp_path / "skip_lists/ep0002.parquet")
    assert (found["kind"], found["samples"], found["kept"], found["epoch"]) == ("skip-list", SIZE, SIZE // 2, 2)
    assert [row["kept"] for row in found["shards"]] == lists[2].kept_per_shard.tolist()
    manifest = summary_of(tmp_path / "manifest.parquet", number=3)
    kept = lists[-2].kept_ids()
    assert (manifest["kind"], manifest["kept"], manifest["method"]) == ("manifest", len(kept), "TED")
    assert [row["sample_id"] for row in manifest["lowest"]] == kept[np.argsort(scores[kept])[:3]].tolist()
    assert sum(row["kept"] for row in manifest["shards"]) == len(kept)
    running = summary_of(tmp_path / "running_scores.parquet", number=1)
    assert running["highest"] == [{"sample_id": int(scores.argmax()), "score": pytest.approx(scores.max())}]
    assert json.loads(json.dumps(manifest))


def test_two_runs_compared(tmp_path: Path) -> None:
    first, second = make_run(tmp_path / "a", LAYOUT), make_run(tmp_path / "b", LAYOUT, seed=1)
    masks = first[-2].keep_mask(), second[-2].keep_mask()
    scores = [read_running_scores(tmp_path / name, layout=LAYOUT)[0] for name in "ab"]
    found = comparison_of(tmp_path / "a", tmp_path / "b")
    kept = found["kept"]
    assert kept["both"] == (masks[0] & masks[1]).sum()
    assert kept["only_first"] == (masks[0] & ~masks[1]).sum()
    assert kept["neither"] == (~masks[0] & ~masks[1]).sum()
    assert kept["jaccard"] == pytest.approx((masks[0] & masks[1]).sum() / (masks[0] | masks[1]).sum())
    assert kept["expected_jaccard"] == pytest.approx(1 / 3)
    ranks = [np.argsort(np.argsort(values)) for values in scores]  # no two are equal
    assert found["scores"]["rank_correlation"] == pytest.approx(np.corrcoef(ranks)[0, 1])
    assert found["scores"]["correlation"] == pytest.approx(np.corrcoef(scores[0], scores[1])[0, 1])
    theirs = found["scores_of_kept"][0]
    assert theirs["pruned"]["mean"] == pytest.approx(scores[1][~masks[0]].mean(dtype=np.float64))
    assert found["epochs"][0]["jaccard"] == 1
    assert len(found["epochs"]) == len(first)


def test_lists_scores_and_manifests_compared(tmp_path: Path) -> None:
    lists = make_run(tmp_path / "a", LAYOUT)
    scores = np.arange(SIZE, dtype=np.float32)
    write_scores(tmp_path / "scores.parquet", LAYOUT, scores, provenance={"method": "m"})
    path = tmp_path / "a/skip_lists/ep0003.parquet"
    kept = lists[3].keep_mask()
    found = comparison_of(path, tmp_path / "scores.parquet")
    assert found["scores_of_kept"][0]["kept"]["mean"] == pytest.approx(scores[kept].mean())
    assert comparison_of(tmp_path / "scores.parquet", path)["scores_of_kept"] == found["scores_of_kept"]
    with_manifest = comparison_of(tmp_path / "a/manifest.parquet", path)
    assert with_manifest["kept"]["both"] == (lists[-2].keep_mask() & kept).sum()
    for name, ratio in (("one", 0.005), ("two", 0.01)):
        export_run(tmp_path / "a", tmp_path / name, selection=Selection(ratio=ratio))
    of_manifests = comparison_of(tmp_path / "one", tmp_path / "two")
    assert (of_manifests["samples"], of_manifests["kept"]["neither"]) == (SIZE, SIZE - 2)
    same = comparison_of(path, path)["kept"]
    assert (same["jaccard"], same["only_first"]) == (1, 0)
    equal = comparison_of(tmp_path / "scores.parquet", tmp_path / "a/running_scores.parquet")["scores"]
    assert equal["known"] == SIZE


def test_two_datasets_are_not_compared(tmp_path: Path) -> None:
    for name, layout in (("a", LAYOUT), ("b", layout_of(SIZE, 5))):
        none = np.ones(SIZE, np.bool_)
        made = SkipList.from_keep_mask(layout, none, epoch=0, keep_ratio=1, method="m", run="r")
        write_skip_list(made, tmp_path / name)
        write_scores(tmp_path / f"{name}.parquet", layout, np.ones(SIZE), provenance={})
    for one, two in (("a", "b"), ("a", "b.parquet"), ("a.parquet", "b"), ("a.parquet", "b.parquet")):
        with pytest.raises(ValueError, match=r"dataset"):
            comparison_of(tmp_path / one, tmp_path / two)


def test_what_cannot_be_inspected_is_named(labelled: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    (tmp_path / "text").write_text("x")
    for path, words in (
        (tmp_path / "nowhere", "neither file nor folder"),
        (tmp_path, "holds none of run.json"),
        (tmp_path / "text", "is no Parquet file"),
    ):
        with pytest.raises((OSError, ValueError), match=words):
            summary_of(path)
    with pytest.raises(ValueError, match="is a dataset, which keeps nothing"):
        comparison_of(labelled[0], labelled[0])
    with pytest.raises(ValueError, match="number is -1"):
        summary_of(tmp_path, number=-1)


def test_a_dataset_of_one_shard_without_classes(tmp_path: Path) -> None:
    with MDSWriter(out=str(tmp_path), columns={"text": "str"}) as writer:
        writer.write({"text": "a"})
    (split,) = summary_of(tmp_path)["splits"]
    assert (split["samples"], split["columns"], split["classes"]) == (1, {"text": "str"}, [])
    assert "has no MDS column of whole numbers" in split["notes"][0]
    assert isinstance(open_dataset(tmp_path).layout, DatasetLayout)
