import io
import json
from pathlib import Path

import pytest
import torch
from imagenet_sources import CLASSES, write_folders
from PIL import Image
from streaming import MDSWriter

from ted_stream.pipelines.corpora.imagenet import prepare_imagenet
from ted_stream.pipelines.training.datasets import JpegShards
from ted_stream.pipelines.training.image_batches import DecodeJpeg
from ted_stream.pipelines.training.loop_host import Host
from ted_stream.pipelines.training.settings import ConfigError, load_settings
from ted_stream.pipelines.training.train import train

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
COMMAND = ROOT / "ted_stream" / "cli" / "__main__.py"
SIZE = 16
TRAIN, TEST = 160, 40
SMALL = [
    *(f"data.{name}" for name in (f"image_size={SIZE}", "batch_size=16", "eval_batch_size=20", "num_workers=0")),
    *("model.name=convnet", "model.channels=[8, 16]", "model.channels_last=false"),
    *("max_duration=3ep", "scheduler.milestones=[2ep]", "scheduler.warmup=5ba", "optimizer.lr=0.1"),
    *(
        "pruning.annealing=0",
        "pruning.prune_ratio=0.5",
        "pruning.method=ted",
        "progress_bar=false",
        "save_interval=null",
    ),
]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("imagenet")
    counts = {"per_class": TRAIN // len(CLASSES), "test_per_class": TEST // len(CLASSES)}
    prepare_imagenet(root / "out", write_folders(root / "source", **counts), shard_size=20_000)
    return root / "out"


@pytest.fixture
def overrides(prepared, tmp_path) -> list[str]:
    return [*SMALL, f"data.path={prepared}", f"folder={tmp_path / 'run'}"]


@pytest.mark.long
def test_a_pruned_run_from_jpegs(overrides, tmp_path):
    result = train(load_settings(CONFIGS / "imagenet_resnet50.yaml", overrides))
    assert result.samples == TRAIN
    assert result.forwarded < 3 * TRAIN
    assert result.save_ratio == pytest.approx(result.planned_save_ratio, abs=0.02)
    assert result.metrics["MulticlassAccuracy"] > 0.5
    again = train(load_settings(CONFIGS / "imagenet_resnet50.yaml", [*overrides, f"folder={tmp_path / 'again'}"]))
    assert again.metrics == result.metrics
    plain = [*overrides, "data.augment=none", f"folder={tmp_path / 'plain'}"]
    assert train(load_settings(CONFIGS / "imagenet_resnet50.yaml", plain)).metrics != result.metrics


@pytest.mark.long
def test_crops_made_in_workers_go_on_to_the_bit(overrides, tmp_path, monkeypatch):
    def run(name, *more):
        common = ("trainer=loop", "data.num_workers=1", "save_interval=4ba", f"folder={tmp_path / name}")
        return train(load_settings(CONFIGS / "imagenet_resnet50.yaml", [*overrides, *common, *more]))

    def weights(name):
        newest = tmp_path / name / "checkpoints" / "newest"
        return torch.load(newest.with_name(newest.read_text()), weights_only=True)["network"]

    def die_within_an_epoch(host, batch):
        if host.batches == 14:
            raise KeyboardInterrupt
        step(host, batch)

    step = Host._train
    lived = run("lived")
    with monkeypatch.context() as patch:
        patch.setattr(Host, "_train", die_within_an_epoch)
        with pytest.raises(KeyboardInterrupt):
            run("killed")
    assert run("killed", "autoresume=true").metrics == lived.metrics
    expected = weights("lived")
    for name, found in weights("killed").items():
        assert torch.equal(found, expected[name]), name


@pytest.mark.long
def test_sharded_training_on_two_ranks(overrides, launch, tmp_path):
    config = CONFIGS / "imagenet_resnet50_fsdp.yaml"
    launch(COMMAND, "train", config, *overrides, "save_interval=1ep", ranks=2)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["samples"] == TRAIN
    assert result["forwarded"] < 3 * TRAIN
    assert result["metrics"]["MulticlassAccuracy"] > 0.5
    # One file with whole weights: what a run without sharding can load.
    checkpoint = torch.load(tmp_path / "run" / "checkpoints" / "latest-rank0.pt", weights_only=False)
    weights = checkpoint["state"]["model"]
    assert weights["module.0.weight"].shape == (8, 3, 3, 3)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.image_size=null", "data.image_size is None, but .* holds jpeg; set it for JPEGs"),
        ("data.augment=crop_flip", "crop_flip is not for .*, which holds jpeg; .* none, random_resized_crop"),
    ],
)
def test_settings_that_jpegs_contradict_are_refused(override, message, overrides):
    with pytest.raises(ConfigError, match=message):
        train(load_settings(CONFIGS / "imagenet_resnet50.yaml", [*overrides, override]))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.image_size=32", "data.image_size is 32, but .* holds images"),
        ("data.augment=random_resized_crop", "not for .*, which holds images; .* none, crop_flip"),
    ],
)
def test_settings_that_decoded_images_contradict_are_refused(override, message, digits, tmp_path):
    places = [f"data.path={digits}", f"folder={tmp_path / 'run'}"]
    with pytest.raises(ConfigError, match=message):
        train(load_settings(CONFIGS / "quickstart.yaml", [*places, override]))


def encoded(image: Image.Image, kind: str) -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def gradient(width: int, height: int) -> Image.Image:
    """Red grows to the right, green grows downwards."""
    image = Image.new("RGB", (width, height))
    image.putdata([(255 * x // width, 255 * y // height, 9) for y in range(height) for x in range(width)])
    return image


def test_a_test_image_is_the_centre_at_256_of_224():
    decode = DecodeJpeg(28, augment=False)
    found = decode(encoded(gradient(128, 64), "PNG"))
    assert found.dtype == torch.uint8
    assert found.shape == (28, 28, 3)
    # The short side of 64 became 32 pixels, of which the inner 28 are kept, and as many of the 64 of the long side.
    rows, columns = (torch.arange(28) + 2.5) / 32 * 255, (torch.arange(28) + 18.5) / 64 * 255
    assert (found[:, :, 0].float() - columns).abs().max() <= 3
    assert (found[:, :, 1].float() - rows[:, None]).abs().max() <= 3
    assert torch.equal(found, decode(encoded(gradient(128, 64), "PNG")))


def test_a_training_image_is_a_random_part_of_which_half_are_mirrored():
    decode = DecodeJpeg(28, augment=True)
    content = encoded(gradient(64, 64), "PNG")
    torch.manual_seed(0)
    images = torch.stack([decode(content) for _ in range(200)])
    assert images.shape == (200, 28, 28, 3)
    red, green = images[..., 0].float(), images[..., 1].float()
    mirrored = red[:, :, 0].mean(1) > red[:, :, -1].mean(1)
    assert 70 < mirrored.sum() < 130
    assert (green[:, -1].mean(1) > green[:, 0].mean(1)).all(), "never upside down"
    share = (red.amax((1, 2)) - red.amin((1, 2))) * (green.amax((1, 2)) - green.amin((1, 2))) / 255**2
    assert 0.05 < share.min() < 0.2
    assert 0.7 < share.max() <= 1
    torch.manual_seed(0)
    assert torch.equal(decode(content), images[0])


def test_colours_are_jittered_where_they_are_asked_to_be():
    content = encoded(Image.new("RGB", (30, 30), (200, 100, 50)), "PNG")
    plain, jittered = (DecodeJpeg(8, augment=True, color_jitter=jitter) for jitter in (0, 0.4))
    assert {tuple(plain(content)[0, 0].tolist()) for _ in range(20)} == {(200, 100, 50)}
    torch.manual_seed(0)
    colours = torch.stack([jittered(content)[0, 0] for _ in range(200)]).float()
    assert colours.unique(dim=0).shape[0] > 100
    assert (colours.mean(1) / (350 / 3)).amin() > 0.55, "brightness and contrast change by 40 % each at most"
    torch.manual_seed(0)
    assert torch.equal(jittered(content)[0, 0].float(), colours[0])
    with pytest.raises(ValueError, match=r"color_jitter is 0.4, but colours change with augment=True alone"):
        DecodeJpeg(8, augment=False, color_jitter=0.4)


@pytest.mark.parametrize("augment", [False, True])
@pytest.mark.parametrize(("mode", "kind"), [("L", "JPEG"), ("CMYK", "JPEG"), ("P", "PNG"), ("RGBA", "PNG")])
def test_images_of_every_mode_have_three_channels(mode, kind, augment):
    found = DecodeJpeg(8, augment=augment)(encoded(Image.new("RGB", (11, 40), (204, 51, 102)).convert(mode), kind))
    colour = torch.tensor((102.6, 102.6, 102.6) if mode == "L" else (204.0, 51.0, 102.0))
    assert (found.float() - colour).abs().max() <= 10


def test_a_sample_that_cannot_be_decoded_is_named(tmp_path):
    whole = encoded(gradient(40, 40), "JPEG")
    with MDSWriter(out=str(tmp_path), columns={"image": "bytes", "label": "int"}) as writer:
        for content in (whole, whole[: len(whole) // 2]):
            writer.write({"image": content, "label": 3})
    dataset = JpegShards(local=str(tmp_path), batch_size=1, decode=DecodeJpeg(8, augment=False))
    assert dataset[0][1] == 3
    with pytest.raises(ValueError, match=f"sample 1 of {tmp_path} cannot be decoded .* damaged"):
        dataset[1]
