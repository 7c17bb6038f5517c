import json
import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from made_runs import layout_of, make_run
from PIL import Image
from streaming import MDSWriter
from typer.testing import CliRunner

from ted_stream.cli.commands import app
from ted_stream.export.dataset_files import open_dataset
from ted_stream.export.run_files import read_running_scores
from ted_stream.pipelines.report.report import write_report
from ted_stream.pipelines.training.metrics_record import MetricsRecord

SIZE = 300
EVIL = '<script>alert("1")</script> & "$x$"'


@dataclass
class Page(HTMLParser):
    """The tags, attributes, texts and tables of a page."""

    tags: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    handlers: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    images: list[str] = field(default_factory=list)
    tables: dict[str, list[list[str]]] = field(default_factory=dict)
    table: str = ""

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href"):
                self.links.append(value or "")
            if name.startswith("on"):
                self.handlers.append(name)
            if tag == "img" and name == "src":
                self.images.append(value or "")
            if tag == "table" and name == "id":
                self.table = value or ""
                self.tables[self.table] = []
        if tag == "tr":
            self.tables[self.table].append([])
        if tag in ("td", "th"):
            self.tables[self.table][-1].append("")

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if self.table and self.tables[self.table] and self.tables[self.table][-1]:
            self.tables[self.table][-1][-1] += data.strip()

    def handle_endtag(self, tag: str) -> None:
        if tag == "table":
            self.table = ""


def read(path: Path) -> Page:
    page = Page()
    page.feed(path.read_text())
    return page


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """A prepared dataset of three classes, one of which has a name that is HTML."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    columns = {"image": "ndarray:uint8:8,8", "label": "int"}
    with MDSWriter(out=str(folder / "train"), columns=columns, size_limit=9000, hashes=["sha1"]) as writer:
        for at in range(SIZE):
            writer.write({"image": rng.integers(0, 17, (8, 8), dtype=np.uint8), "label": at % 3})
    description = {"format": 1, "kind": "images", "name": "three", "samples": {"train": SIZE}}
    (folder / "dataset.json").write_text(json.dumps({**description, "classes": ["日本語", EVIL, "c"]}))
    return folder


@pytest.mark.long
def test_figures_are_those_of_the_files(images: Path, tmp_path: Path) -> None:
    data = open_dataset(images)
    lists = make_run(tmp_path / "run", data.layout)
    record = MetricsRecord(str(tmp_path / "run"), rank=0)
    for epoch, accuracy in enumerate((0.25, 0.5, 0.75)):
        metrics = {"MulticlassAccuracy": accuracy, "CrossEntropy": 2.0 - epoch}
        record.add(batch=epoch + 1, samples=SIZE * (epoch + 1), metrics=metrics)
    done = write_report([tmp_path / "run"], tmp_path / "r.html", data=str(images), pngs=tmp_path / "png")
    page = read(tmp_path / "r.html")
    masks = [made.keep_mask() for made in lists]
    forwarded = 0
    for epoch, (row, keep) in enumerate(zip(page.tables["epochs-0"][1:], masks, strict=True)):
        before = masks[epoch - 1] if epoch else np.ones(SIZE, np.bool_)
        forwarded += keep.sum()
        assert row == [
            str(epoch),
            f"{keep.mean():.2%}",
            f"{keep.sum()}",
            f"{keep.mean():.2%}",
            f"{(keep & ~before).sum()}",
            f"{(before & ~keep).sum()}",
            f"{(keep & before).sum() / keep.sum():.1%}" if epoch else "",
            f"{before.mean():.1%}" if epoch else "",
            f"{keep.sum()}",
            f"{1 - forwarded / (SIZE * (epoch + 1)):.4f}",
        ]
    last = masks[-2]
    for row, label in zip(sorted(page.tables["classes-0"][1:]), (1, 2, 0), strict=True):  # by their names
        of_class = np.arange(SIZE) % 3 == label
        assert row[1:4] == ["100", f"{(last & of_class).sum()}", f"{last[of_class].mean():.1%}"]
    head, values = page.tables["runs"]
    told = dict(zip(head, values, strict=True))
    assert told["state"] == "finished, 6 of 6 epochs"
    assert (told["test accuracy"], told["test cross entropy"]) == ("75.00%", "0.0000")
    assert told["forwarded"] == f"{forwarded:,}"
    assert (told["save ratio planned"], told["save ratio real"]) == ("0.4000", f"{1 - forwarded / (6 * SIZE):.4f}")
    scores, _ = read_running_scores(tmp_path / "run", layout=data.layout)
    shown = [float(text.removeprefix("score ")) for text in page.texts if text.startswith("score ")]
    order = np.argsort(-scores, kind="stable")
    assert shown[:24] == pytest.approx(scores[[*order[:12], *order[::-1][:12]]].tolist(), rel=1e-3)
    assert len(page.images) == 36
    names = {Path(path).stem for path in done.pngs}
    assert names >= {"keep-ratio", "save-ratio", "metric-0", "metric-0-cost", "metric-1", "churn", "overlap"}
    assert names >= {"scores-0", "scores-by-epoch-0", "times-kept-0", "classes-0"}
    for path in done.pngs:
        with Image.open(path) as image:
            assert image.format == "PNG"


def test_what_comes_from_data_stays_text_and_nothing_is_fetched(images: Path, tmp_path: Path) -> None:
    data = open_dataset(images)
    folder = tmp_path / '<b onclick="x">run'
    make_run(folder, data.layout, name=EVIL)
    write_report([folder], tmp_path / "r.html", data=str(images))
    page = read(tmp_path / "r.html")
    assert not {"script", "b onclick", "iframe", "object", "foreignobject"} & set(page.tags)
    assert not page.handlers
    assert EVIL in page.texts  # beside its samples
    assert any('<b onclick="x">run' in text for text in page.texts)
    assert "svg" in page.tags
    assert all(link.startswith(("data:", "#")) for link in page.links)
    assert "default-src 'none'" in (tmp_path / "r.html").read_text()
    style = "".join(re.findall(r"<style>(.*?)</style>", (tmp_path / "r.html").read_text(), re.DOTALL))
    assert "url(" not in style
    assert "@import" not in style
    ids = re.findall(r'\bid="([^"]+)"', (tmp_path / "r.html").read_text())
    assert len(ids) == len(set(ids))


def test_texts_are_shown_as_text(tmp_path: Path) -> None:
    with MDSWriter(out=str(tmp_path / "data"), columns={"text": "str"}, hashes=["sha1"]) as writer:
        for at in range(40):
            writer.write({"text": f"<img src=x onerror=alert({at})> {'y' * 2000}"})
    make_run(tmp_path / "run", open_dataset(tmp_path / "data").layout)
    write_report([tmp_path / "run"], tmp_path / "r.html", data=str(tmp_path / "data"), samples=5)
    page = read(tmp_path / "r.html")
    texts = [text for text in page.texts if text.startswith("text: <img src=x onerror=alert(")]
    assert len(texts) == 15
    assert max(map(len, texts)) <= 600
    assert "img" not in page.tags
    assert not page.handlers


def test_a_class_that_nearly_vanishes_is_warned_of(images: Path, tmp_path: Path) -> None:
    keep = np.arange(SIZE) % 3 != 1
    make_run(tmp_path / "run", open_dataset(images).layout, choose=lambda e, s, r: keep)
    write_report([tmp_path / "run"], tmp_path / "r.html", data=str(images))
    (told,) = (text for text in read(tmp_path / "r.html").texts if "nearly vanishes" in text)
    assert told.startswith(f"Class {EVIL} nearly vanishes: 4 of the pruned epochs")
    assert "0.0% of its 100 samples" in told


def test_a_killed_run_without_scores_of_a_dataset_that_is_gone(tmp_path: Path) -> None:
    layout = layout_of(SIZE)
    make_run(tmp_path / "run", layout, epochs=4, planned_epochs=9, finished=False, scored=False)
    done = write_report([tmp_path / "run"], tmp_path / "r.html", data=str(tmp_path / "gone"))
    page = read(tmp_path / "r.html")
    assert page.tables["runs"][1][1] == "killed or still at work, 4 of 9 epochs"
    assert any("The dataset could not be read" in note for note in done.notes)
    assert any("keeps no scores" in note for note in done.notes)
    assert any("recorded no accuracy" in note for note in done.notes)
    assert not page.images
    assert "chart-scores-0" not in (tmp_path / "r.html").read_text()
    assert any("switched" in text for text in page.texts)


@pytest.mark.long
def test_runs_beside_each_other_and_one_on_all_data(tmp_path: Path) -> None:
    layout = layout_of(SIZE)
    for name, seed in (("a", 0), ("b", 1)):
        make_run(tmp_path / name, layout, seed=seed)
    (tmp_path / "none").mkdir()
    (tmp_path / "none/config.yaml").write_text("run_name: none\nmax_duration: 6ep\npruning:\n  method: none\n")
    result = {"epochs": 6, "metrics": {"MulticlassAccuracy": 0.9}, "samples": SIZE, "forwarded": 6 * SIZE}
    (tmp_path / "none/result.json").write_text(json.dumps({**result, "save_ratio": 0.0, "seconds": 2.5}))
    write_report([tmp_path / name for name in ("a", "b", "none")], tmp_path / "r.html")
    page = read(tmp_path / "r.html")
    assert [row[0] for row in page.tables["runs"][1:]] == ["a", "b", "none"]
    assert page.tables["runs"][3][1:3] == ["finished, 6 epochs", "90.00%"]
    assert {"epochs-0", "epochs-1"} <= page.tables.keys()
    assert "epochs-2" not in page.tables


@pytest.mark.long
def test_what_hugging_faces_trainer_logged(tmp_path: Path) -> None:
    make_run(tmp_path / "pruning", layout_of(SIZE), epochs=3)
    log = [{"loss": 1.5, "epoch": 1.0, "step": 5}, {"eval_accuracy": 0.5, "eval_loss": 1.25, "epoch": 2.0, "step": 9}]
    for step, entries in ((5, log[:1]), (9, log)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        state = {"global_step": step, "log_history": entries}
        (tmp_path / f"checkpoint-{step}/trainer_state.json").write_text(json.dumps(state))
    write_report([tmp_path / "pruning"], tmp_path / "r.html")
    head, values = read(tmp_path / "r.html").tables["runs"]
    told = dict(zip(head, values, strict=True))
    assert (told["loss"], told["eval accuracy"], told["eval loss"]) == ("1.5000", "50.00%", "1.2500")


@pytest.mark.long
def test_a_report_of_imagenets_size_is_small(tmp_path: Path) -> None:
    """1.28 M samples of 1,000 classes, with more epochs than a line has points."""
    size, shards, classes = 1_280_000, 64, 1000
    data = tmp_path / "data"
    data.mkdir()
    entries, each = [], size // shards
    for shard in range(shards):
        labels = np.random.default_rng(shard).integers(0, classes, each).astype("<i8")
        table = 4 * (2 + each) + 8 * np.arange(each + 1)
        raw = np.concatenate([[each], table]).astype("<u4").tobytes() + labels.tobytes()
        name = f"shard.{shard:05d}.mds"
        (data / name).write_bytes(raw)
        columns = {"column_names": ["label"], "column_encodings": ["int"], "column_sizes": [8]}
        of_file = {"basename": name, "bytes": len(raw), "hashes": {"sha1": str(shard)}}
        described = {"format": "mds", "version": 2, "samples": each, "compression": None, "hashes": ["sha1"]}
        entries.append({**described, **columns, "raw_data": of_file, "zip_data": None, "size_limit": None})
    (data / "index.json").write_text(json.dumps({"version": 2, "shards": entries}))
    run = tmp_path / "run"
    make_run(run, open_dataset(data).layout, epochs=4)
    made = json.loads((run / "run.json").read_text())
    first = made["epochs"][0]
    made["epochs"] = [*made["epochs"], *({**first, "epoch": epoch} for epoch in range(4, 1000))]  # all of them whole
    (run / "run.json").write_text(json.dumps(made))
    done = write_report([run], tmp_path / "r.html", data=str(data))
    assert done.size == (tmp_path / "r.html").stat().st_size < 1_000_000
    page = read(tmp_path / "r.html")
    assert len(page.tables["epochs-0"]) == 401
    assert len(page.tables["classes-0"]) == 101
    assert len([text for text in page.texts if text.startswith("label: ")]) == 36


@pytest.mark.long
def test_wrong_use_is_told(tmp_path: Path) -> None:
    make_run(tmp_path / "run", layout_of(SIZE))
    write_report([tmp_path / "run"], tmp_path / "r.html", samples=0)
    runner = CliRunner()
    for arguments, words in (
        ([str(tmp_path / "run"), "--out", str(tmp_path / "r.html")], "exists; name another file"),
        ([str(tmp_path / "nowhere"), "--out", str(tmp_path / "n.html")], "holds no run.json"),
        ([str(tmp_path / "run")] * 9 + ["--out", str(tmp_path / "n.html")], "9 runs are given"),
        ([str(tmp_path / "run"), "--samples", "99", "--out", str(tmp_path / "n.html")], "samples is 99"),
    ):
        result = runner.invoke(app, ["report", *arguments])
        assert result.exit_code == 1
        assert words in " ".join(result.output.split())
    assert not (tmp_path / "n.html").exists()
    again = ["report", str(tmp_path / "run"), "--out", str(tmp_path / "r.html"), "--overwrite"]
    assert runner.invoke(app, again).exit_code == 0
    over = runner.invoke(app, [*again[:3], str(tmp_path / "run/run.json"), "--overwrite"])
    assert over.exit_code == 1
    assert "is no page, so it is not replaced" in " ".join(over.output.split())
    assert json.loads((tmp_path / "run/run.json").read_text())


@pytest.mark.long
def test_a_run_in_an_object_store(s3, tmp_path: Path) -> None:
    del s3
    make_run(tmp_path / "run", layout_of(SIZE))
    from ted_stream.files import read_bytes, write_bytes

    for path in (tmp_path / "run").rglob("*.*"):
        write_bytes(f"s3://training/runs/r/{path.relative_to(tmp_path / 'run')}", path.read_bytes())
    write_report(["s3://training/runs/r"], "s3://training/report.html")
    here = tmp_path / "r.html"
    here.write_bytes(read_bytes("s3://training/report.html"))
    assert read(here).tables["runs"][1][0] == "r"
