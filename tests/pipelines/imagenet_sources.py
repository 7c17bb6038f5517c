"""Small ImageNet look-alikes in each of the three layouts, with the same images."""

import io
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import scipy.io
from PIL import Image

CLASSES = ("n01440764", "n01443537", "n02085620", "n15075141")
DEVKIT = "ILSVRC2012_devkit_t12"


def write_folders(root: Path, *, per_class: int, test_per_class: int, seed: int = 0) -> Path:
    """Noisy images around one colour per class, 20 to 60 pixels a side; among them a PNG, a CMYK and a grey one."""
    rng = np.random.default_rng(seed)
    colours = rng.permutation(np.linspace(0, 255, len(CLASSES) * 3)).reshape(-1, 3)
    tests = rng.permutation(np.repeat(np.arange(len(CLASSES)), test_per_class))
    files = [
        *((label, f"train/{name}/{name}_{7 * index + 1}.JPEG") for label, name in enumerate(CLASSES)
          for index in range(per_class)),
        *((label, f"val/{CLASSES[label]}/ILSVRC2012_val_{number:08}.JPEG") for number, label in enumerate(tests, 1)),
    ]  # fmt: skip
    for position, (label, name) in enumerate(files):
        noise = rng.integers(-40, 41, (*rng.integers(20, 61, 2), 3))
        image = Image.fromarray(np.clip(colours[label] + noise, 0, 255).astype(np.uint8))
        mode = {1: "CMYK", 2: "L"}.get(position, "RGB")
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image.convert(mode).save(path, "PNG" if position == 0 else "JPEG")
    return root


def write_tar(path: Path, members: Iterable[tuple[str, bytes]], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # pyright: ignore[reportCallIssue, reportArgumentType]
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def write_tars(root: Path, folders: Path) -> Path:
    """The official tars and devkit of a tree of folders."""
    root.mkdir()

    def inner(wnid: str) -> bytes:
        files = sorted((folders / "train" / wnid).iterdir(), reverse=True)
        return write_tar(root / "inner.tar", [(file.name, file.read_bytes()) for file in files]).read_bytes()

    write_tar(root / "ILSVRC2012_img_train.tar", [(f"{wnid}.tar", inner(wnid)) for wnid in reversed(CLASSES)])
    (root / "inner.tar").unlink()
    tests = sorted((folders / "val").glob("*/*"), key=lambda file: file.name)
    write_tar(root / "ILSVRC2012_img_val.tar", [(file.name, file.read_bytes()) for file in tests])
    write_devkit(root, [file.parent.name for file in tests])
    return root


def write_devkit(root: Path, test_classes: Sequence[str]) -> None:
    """Ids that are not in the order of the names, and a synset with children, which is no class."""
    names = ("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "children")
    synsets = np.empty((len(CLASSES) + 1, 1), [(name, object) for name in names])
    ids = {wnid: len(CLASSES) - index for index, wnid in enumerate(CLASSES)}
    for row, (wnid, number) in enumerate(ids.items()):
        synsets[row, 0] = (float(number), wnid, "a thing, another", "what it is", 0.0, np.zeros(0))
    synsets[-1, 0] = (float(len(CLASSES) + 1), "n00001740", "entity", "all", 2.0, np.array([1.0, 2.0]))
    meta = io.BytesIO()
    scipy.io.savemat(meta, {"synsets": synsets})
    truth = "".join(f"{ids[wnid]}\n" for wnid in test_classes)
    members = [
        (f"{DEVKIT}/data/ILSVRC2012_validation_ground_truth.txt", truth.encode()),
        (f"{DEVKIT}/data/meta.mat", meta.getvalue()),
    ]
    write_tar(root / f"{DEVKIT}.tar.gz", members, "w:gz")


def write_shards(root: Path, folders: Path, *, per_shard: int = 17) -> Path:
    """WebDataset shards of a tree of folders, in a random order."""
    root.mkdir()
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        files = sorted((folders / split).glob("*/*"))
        files = [files[index] for index in rng.permutation(len(files))]
        for start in range(0, len(files), per_shard):
            members = []
            for file in files[start : start + per_shard]:
                label = CLASSES.index(file.parent.name)
                contents = {"cls": str(label).encode(), "jpg": file.read_bytes(), "json": b"{}"}
                members += [(f"{file.stem}.{suffix}", content) for suffix, content in contents.items()]
            write_tar(root / f"imagenet-{split}-{start // per_shard:06}.tar", members)
    return root
