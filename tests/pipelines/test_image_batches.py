import pytest
import torch

from ted_stream.pipelines.training.image_batches import ImageTransform, random_crop_flip


def images(count: int = 64, height: int = 6, width: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(1, 256, (count, height, width, 3), dtype=torch.uint8, generator=generator)


def test_every_result_is_a_crop_of_the_padded_image_or_its_mirror():
    batch = images()
    torch.manual_seed(1)
    out = random_crop_flip(batch, 2)
    assert out.dtype == torch.uint8
    assert out.shape == batch.shape
    found = []
    for image, crop in zip(batch, out, strict=True):
        padded = torch.zeros(10, 9, 3, dtype=torch.uint8)
        padded[2:8, 2:7] = image
        windows = {
            (top, left, flip): (padded[top : top + 6, left : left + 5].flip(1) if flip else
                                padded[top : top + 6, left : left + 5])
            for top in range(5) for left in range(5) for flip in (False, True)
        }  # fmt: skip
        matches = [place for place, window in windows.items() if torch.equal(window, crop)]
        assert len(matches) == 1
        found += matches
    assert len({(top, left) for top, left, _ in found}) > 15, "offsets must vary over the batch"
    assert 16 < sum(flip for _, _, flip in found) < 48


def test_the_global_seed_decides():
    batch = images()
    torch.manual_seed(3)
    first = random_crop_flip(batch, 4)
    second = random_crop_flip(batch, 4)
    torch.manual_seed(3)
    assert torch.equal(first, random_crop_flip(batch, 4))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("channels_last", [False, True])
def test_pixels_are_normalised_and_the_rest_passes(channels_last):
    batch, labels, ids = images(4), torch.arange(4), torch.arange(10, 14)
    mean, std = [100.0, 50.0, 20.0], [2.0, 3.0, 4.0]
    transform = ImageTransform(mean, std, channels_last=channels_last)
    out, *others = transform([batch, labels, ids])
    expected = ((batch.double() - torch.tensor(mean)) / torch.tensor(std)).permute(0, 3, 1, 2)
    torch.testing.assert_close(out.double(), expected, rtol=1e-6, atol=1e-5)
    assert out.dtype == torch.float32
    assert out.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    assert others[0] is labels
    assert others[1] is ids
    assert len(transform((batch, labels))) == 2


def test_grey_images_gain_a_channel():
    (out,) = ImageTransform([0.0], [1.0], padding=1)([torch.ones(2, 8, 8, dtype=torch.uint8)])
    assert out.shape == (2, 1, 8, 8)


def test_a_constant_channel_is_refused():
    with pytest.raises(ValueError, match="without variation"):
        ImageTransform([0.0], [0.0])
