import fcntl
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from imagenet_sources import CLASSES, DEVKIT, write_devkit, write_folders, write_shards, write_tar, write_tars
from PIL import Image
from streaming import MDSWriter, StreamingDataset
from typer.testing import CliRunner

from ted_stream.cli.commands import app
from ted_stream.pipelines.corpora.imagenet import prepare_imagenet
from ted_stream.pipelines.corpora.prepared import DESCRIPTION_FILE, read_description

SHARD_SIZE = 6000
PER_CLASS, TEST_PER_CLASS = 12, 3


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("imagenet")
    folders = write_folders(root / "folders", per_class=PER_CLASS, test_per_class=TEST_PER_CLASS)
    return {
        "folders": folders,
        "tars": write_tars(root / "tars", folders),
        "shards": write_shards(root / "shards", folders),
    }


@pytest.fixture(scope="module")
def prepared(sources, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("prepared") / "imagenet"
    prepare_imagenet(out, sources["folders"], shard_size=SHARD_SIZE)
    return out


@pytest.fixture
def copied(sources, tmp_path) -> Callable[[str], Path]:
    """A function that copies a source, to be spoilt."""
    return lambda layout: Path(shutil.copytree(sources[layout], tmp_path / layout))


def shards_of(folder: Path) -> dict[str, bytes]:
    """All that lies there, but the origins, which say what the source was."""
    files = [file for file in sorted(folder.glob("*/*")) if file.name != "origins.parquet"]
    assert {file.suffix for file in files} == {".mds", ".json"}
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def test_every_file_is_there_as_it_was_with_its_class(sources, prepared):
    description = read_description(str(prepared))
    assert description.kind == "jpeg"
    assert description.classes == CLASSES
    for split, name in (("train", "train"), ("test", "val")):
        dataset = StreamingDataset(local=str(prepared / split), batch_size=1)
        samples = [dataset[index] for index in range(dataset.num_samples)]
        found = [(sample["image"], CLASSES[sample["label"]]) for sample in samples]
        expected = [(file.read_bytes(), file.parent.name) for file in (sources["folders"] / name).glob("*/*")]
        assert sorted(found) == sorted(expected)
        assert description.samples[split] == len(found)
        labels = [sample["label"] for sample in samples]
        assert labels != sorted(labels), "the stored order must mix classes"


def test_shards_and_index_are_those_of_streaming_s_writer(prepared, tmp_path):
    for split in ("train", "test"):
        dataset = StreamingDataset(local=str(prepared / split), batch_size=1)
        columns = {"label": "int", "image": "bytes"}
        with MDSWriter(out=str(tmp_path / split), columns=columns, size_limit=SHARD_SIZE, hashes=["sha1"]) as writer:
            for index in range(dataset.num_samples):
                writer.write(dataset[index])
    assert shards_of(prepared) == shards_of(tmp_path)
    assert len(shards_of(prepared)) > 10


@pytest.mark.parametrize("layout", ["tars", "shards"])
def test_every_layout_gives_the_same_shards(layout, sources, prepared, tmp_path):
    description = prepare_imagenet(tmp_path / "out", sources[layout], shard_size=SHARD_SIZE)
    assert shards_of(tmp_path / "out") == shards_of(prepared)
    assert description.notes["layout"] == layout


def test_the_seed_decides_the_order_and_large_images_have_shards_of_their_own(sources, prepared, tmp_path):
    prepare_imagenet(tmp_path / "seed", sources["folders"], shard_size=SHARD_SIZE, seed=1)
    assert shards_of(tmp_path / "seed") != shards_of(prepared)
    prepare_imagenet(tmp_path / "small", sources["folders"], shard_size=1)
    assert len(list((tmp_path / "small").glob("train/*.mds"))) == len(CLASSES) * PER_CLASS
    for size in (0, 2**32):
        with pytest.raises(ValueError, match=f"shard_size is {size}"):
            prepare_imagenet(tmp_path / "refused", sources["folders"], shard_size=size)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def test_a_killed_preparation_goes_on(sources, prepared, tmp_path):
    out = tmp_path / "imagenet"
    script = Path(__file__).with_name("killed_prepare.py")
    command = [sys.executable, str(script), str(sources["tars"]), str(out), str(SHARD_SIZE), "5"]
    killed = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    workers = [int(pid) for pid in killed.stdout.split()]
    assert len(workers) == 2
    limit = time.monotonic() + 60
    while any(map(alive, workers)):
        assert time.monotonic() < limit, "workers outlive their parent"
        time.sleep(0.05)
    assert not out.exists()
    (work,) = tmp_path.iterdir()
    written = sorted((work / "dataset").glob("*/*.mds"))
    assert 5 <= len(written) < len(shards_of(prepared))
    damaged, *kept = written
    damaged.write_bytes(damaged.read_bytes()[:-1])
    inodes = {file.relative_to(work / "dataset"): file.stat().st_ino for file in kept}

    with pytest.raises(FileExistsError, match="unfinished prepared dataset that differs in: seed"):
        prepare_imagenet(out, sources["tars"], shard_size=SHARD_SIZE, seed=1)
    told = []
    prepare_imagenet(out, sources["tars"], shard_size=SHARD_SIZE, progress=lambda *news: told.append(news))
    assert shards_of(out) == shards_of(prepared)
    assert {file: (out / file).stat().st_ino for file in inodes} == inodes, "what was written is not written again"
    counts = [count for stage, count, _ in told if stage == "write"]
    assert counts[0] > 0
    assert {sum(counts)} == {total for stage, _, total in told if stage == "write"}
    assert list(tmp_path.iterdir()) == [out]


def interrupt(out: Path, source: Path) -> Path:
    """Leave an unfinished preparation behind."""

    def stop(stage: str, count: int, _: int | None) -> None:
        if stage == "write" and count:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_imagenet(out, source, shard_size=SHARD_SIZE, progress=stop)
    return out.with_name(f".{out.name}.unfinished")


def test_another_source_is_refused_unless_told_to_begin_anew(copied, tmp_path):
    out, source = tmp_path / "out", copied("folders")
    work = interrupt(out, source)
    begun = (work / "plan.json").read_bytes()
    for image in source.glob("*/*/*.JPEG"):  # other pixels, the same size
        content = bytearray(image.read_bytes())
        if content[:2] == b"\xff\xd8":  # the PNG has checksums
            content[-30] ^= 1
            image.write_bytes(content)
    with pytest.raises(FileExistsError, match=r"differs in: source\. .* --overwrite"):
        prepare_imagenet(out, source, shard_size=SHARD_SIZE)
    assert (work / "plan.json").read_bytes() == begun
    prepare_imagenet(out, source, shard_size=SHARD_SIZE, overwrite=True)
    prepare_imagenet(tmp_path / "again", source, shard_size=SHARD_SIZE)
    assert shards_of(out) == shards_of(tmp_path / "again")
    assert not work.exists()


def test_two_at_once_are_refused(sources, tmp_path):
    out = tmp_path / "out"
    work = interrupt(out, sources["folders"])
    with (work / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(FileExistsError, match="another process writes the prepared dataset"):
            prepare_imagenet(out, sources["folders"], shard_size=SHARD_SIZE)


def test_a_finished_dataset_is_replaced_only_when_told(sources, prepared, tmp_path):
    out = Path(shutil.copytree(prepared, tmp_path / "out"))
    with pytest.raises(FileExistsError, match="--overwrite"):
        prepare_imagenet(out, sources["folders"], seed=1)
    assert shards_of(out) == shards_of(prepared)
    prepare_imagenet(out, sources["folders"], seed=1, overwrite=True)
    assert shards_of(out) != shards_of(prepared)
    assert list(tmp_path.iterdir()) == [out]


def thumbnail_first(jpeg: bytes) -> bytes:
    """The image with another, whole one in its header, as cameras write it."""
    small = io.BytesIO()
    Image.new("RGB", (8, 8)).save(small, "JPEG")
    segment = b"Exif\0\0" + small.getvalue()
    return jpeg[:2] + b"\xff\xe1" + (len(segment) + 2).to_bytes(2, "big") + segment + jpeg[2:]


def test_all_damaged_images_are_named_at_once(copied, tmp_path):
    source = copied("folders")
    png, *jpegs = sorted((source / "train" / CLASSES[0]).iterdir(), key=lambda file: file.read_bytes()[:1] != b"\x89")
    png.write_bytes(png.read_bytes()[:-20])
    whole = thumbnail_first(jpegs[0].read_bytes())
    jpegs[0].write_bytes(whole)
    jpegs[1].write_bytes(whole[:-2])
    jpegs[2].write_bytes(b"")
    jpegs[3].write_text("not found")
    test = next((source / "val" / CLASSES[3]).iterdir())
    Image.new("RGB", (20, 20)).save(test, "GIF")
    with pytest.raises(ValueError, match="cannot use 5 of 60 images") as refused:
        prepare_imagenet(tmp_path / "out", source, shard_size=SHARD_SIZE)
    message = str(refused.value)
    with pytest.raises(ValueError, match="cannot use 5 of 60 images"):  # nothing damaged was kept as written
        prepare_imagenet(tmp_path / "out", source, shard_size=SHARD_SIZE)
    assert jpegs[0].name not in message
    assert f"{jpegs[1].relative_to(source)} ({jpegs[1].stem}): its end is missing" in message
    for file in (png, jpegs[2], jpegs[3], test):
        assert str(file.relative_to(source)) in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("layout", ["tars", "shards"])
@pytest.mark.parametrize("name", ["/etc/x.jpg", "../x.jpg", "a/../../x.jpg"])
def test_unsafe_member_names_are_refused(layout, name, copied, tmp_path):
    source = copied(layout)
    target = "ILSVRC2012_img_val.tar" if layout == "tars" else "imagenet-val-000000.tar"
    write_tar(source / target, [(name, b"abc")], "a")
    with pytest.raises(ValueError, match="unsafe member name"):
        prepare_imagenet(tmp_path / "out", source)


def test_links_in_a_tar_are_refused(copied, tmp_path):
    source = copied("shards")
    with tarfile.open(source / "imagenet-train-000000.tar", "a") as archive:
        member = tarfile.TarInfo("x.jpg")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(member)
    with pytest.raises(ValueError, match="as a link"):
        prepare_imagenet(tmp_path / "out", source)


def cut_in_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


SPOILT: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "no test images": ("folders", lambda s: shutil.rmtree(s / "val"), "no folder val or validation or test"),
    "classes differ": ("folders", lambda s: shutil.rmtree(s / "val" / CLASSES[1]), f"of train and test: {CLASSES[1]}"),
    "an empty class": (
        "folders",
        lambda s: [file.rename(file.with_suffix(".txt")) for file in (s / "train" / CLASSES[1]).iterdir()],
        f"train/{CLASSES[1]} has no images",
    ),
    "several layouts": ("folders", lambda s: write_tar(s / "train-0.tar", []), "folders and shards; choose one"),
    "no layout": ("folders", lambda s: (s / "train").rename(s / "training"), "neither train/<class>/ nor"),
    "a tar is missing": ("tars", lambda s: (s / "ILSVRC2012_img_val.tar").unlink(), "no ILSVRC2012_img_val.tar"),
    "a tar is cut off": ("tars", lambda s: cut_in_half(s / "ILSVRC2012_img_train.tar"), "cannot be read as a tar"),
    "no devkit": ("tars", lambda s: cut_in_half(s / f"{DEVKIT}.tar.gz"), "devkit.* cannot be read as a tar"),
    "an empty devkit": ("tars", lambda s: write_tar(s / f"{DEVKIT}.tar.gz", [], "w:gz"), "has no data/meta.mat"),
    "a devkit of others": (
        "tars",
        lambda s: write_devkit(s, CLASSES[:3] * 4),
        f"only one of train and test: {CLASSES[3]}",
    ),
    "too few truths": ("tars", lambda s: write_devkit(s, CLASSES), "ends in no number from 1 to 4"),
    "no test shards": (
        "shards",
        lambda s: [file.unlink() for file in s.glob("*val*")],
        "needs WebDataset shards of both splits",
    ),
    "no class": ("shards", lambda s: write_tar(s / "val-1.tar", [("a/x.jpg", b"")]), "'a/x' without a cls"),
    "no image": ("shards", lambda s: write_tar(s / "val-1.tar", [("x.cls", b"1")]), "'x' without its image"),
    "an odd class": ("shards", lambda s: write_tar(s / "val-1.tar", [("x.cls", b"cat")]), "'x.cls' with b'cat'"),
    "twice": ("shards", lambda s: write_tar(s / "val-1.tar", [("x.jpg", b""), ("x.JPEG", b"")]), "'x' twice"),
}


@pytest.mark.parametrize("case", SPOILT)
def test_what_is_wrong_with_a_source_is_named(case, copied, tmp_path):
    layout, spoil, message = SPOILT[case]
    source = copied(layout)
    spoil(source)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        prepare_imagenet(tmp_path / "out", source)
    assert [path.name for path in tmp_path.iterdir()] == [layout]


def test_the_command_takes_the_layout_that_it_is_told(copied, prepared, tmp_path):
    source = copied("folders")
    write_tar(source / "train-0.tar", [])
    command = ["prepare", "imagenet", "--source", str(source), "--out", str(tmp_path / "out"), "--workers", "1"]
    result = CliRunner().invoke(app, [*command, "--shard-size", str(SHARD_SIZE), "--layout", "folders"])
    assert result.exit_code == 0, result.output
    assert "48 train, 12 test" in result.output
    assert shards_of(tmp_path / "out") == shards_of(prepared)
    description = json.loads((tmp_path / "out" / DESCRIPTION_FILE).read_text())
    assert description["notes"] == {"seed": 0, "source": str(source), "layout": "folders"}
