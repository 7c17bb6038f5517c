import math

import numpy as np
import pytest

from ted_stream.pruning.hashing import gumbel, hash_ids, uniform

IDS = np.arange(1_000_000)
_WORD = (1 << 64) - 1


def _splitmix64(state: int) -> int:
    """SplitMix64's output function, in Python's unbounded integers."""
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & _WORD
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB & _WORD
    return state ^ (state >> 31)


@pytest.mark.parametrize(("seed", "epoch"), [(0, 0), (17, 3)])
def test_a_million_ids_never_collide(seed, epoch):
    hashes = hash_ids(IDS, seed=seed, epoch=epoch)
    assert hashes.dtype == np.uint64
    hashes.sort()
    assert (hashes[1:] > hashes[:-1]).all()


def test_golden_values():
    """A change here changes which samples every seeded run keeps: it needs a new major version, not a new number."""
    ids = np.array([0, 1, 123_456_789])
    # (0, 0) is SplitMix64 itself, seeded with 0: its published first two outputs.
    assert hash_ids(ids, seed=0).tolist() == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x0F379C8563B2EB74]
    expected = [0x70F0F2AA6D26D949, 0x98E2C769A4E416FE, 0x5A5530F201D9B21B]
    assert hash_ids(ids, seed=17, epoch=3).tolist() == expected
    expected = [0x35AA7FA129D87ACE, 0x5EE117A1AB6CAAAF, 0x70766D500284478C]
    assert hash_ids(ids, seed=-1, epoch=3).tolist() == expected
    # The upper 52 bits of the middle row, and a half.
    expected = [(bits + 0.5) / 2**52 for bits in (0x70F0F2AA6D26D, 0x98E2C769A4E41, 0x5A5530F201D9B)]
    assert uniform(ids, seed=17, epoch=3).tolist() == expected
    expected = [0.20051393044771168, 0.6626454340322037, -0.04083197093637888]
    np.testing.assert_allclose(gumbel(ids, seed=17, epoch=3), expected, rtol=1e-13)


def test_equals_unbounded_arithmetic():
    """No silent overflow, cast or precedence: the same hash in Python's integers."""
    golden = 0x9E3779B97F4A7C15
    for seed, epoch in [(0, 0), (1, 0), (2**63, 199), (-5, 7)]:
        key = _splitmix64((_splitmix64(seed & _WORD) + epoch * golden) & _WORD)
        ids = [0, 1, 2, 999, 2**40, 2**62]
        expected = [_splitmix64(((i + 1) * golden & _WORD) ^ key) for i in ids]
        assert hash_ids(np.array(ids), seed=seed, epoch=epoch).tolist() == expected


def test_differs_by_seed_and_epoch():
    ids = IDS[:10_000]
    base = hash_ids(ids, seed=1, epoch=1)
    assert np.array_equal(base, hash_ids(ids.copy(), seed=1, epoch=1))
    for seed, epoch in [(2, 1), (1, 2), (0, 1), (1, 0), (2, 0), (0, 2)]:
        other = hash_ids(ids, seed=seed, epoch=epoch)
        assert not (base == other).any()
        correlation = np.corrcoef(uniform(ids, seed=1, epoch=1), uniform(ids, seed=seed, epoch=epoch))[0, 1]
        assert abs(correlation) < 4.5 / math.sqrt(len(ids))


def test_a_hash_knows_the_id_alone_not_its_position():
    shuffled = np.random.default_rng(0).permutation(1000)
    assert np.array_equal(hash_ids(shuffled, seed=3), hash_ids(np.arange(1000), seed=3)[shuffled])
    assert hash_ids(np.empty(0, np.int64), seed=3).shape == (0,)


@pytest.mark.parametrize(("seed", "epoch"), [(0, 0), (17, 3), (-1, 199)])
def test_uniform_is_uniform_and_open(seed, epoch):
    u = uniform(IDS, seed=seed, epoch=epoch)
    assert u.min() > 0
    assert u.max() < 1
    # Moments about the mean: each empirical mean within 4.5 standard errors.
    n = len(IDS)
    assert abs(u.mean() - 1 / 2) < 4.5 * math.sqrt(1 / 12 / n)
    assert abs(((u - 0.5) ** 2).mean() - 1 / 12) < 4.5 * math.sqrt(1 / 180 / n)
    # Kolmogorov-Smirnov at a level of about 1e-5.
    distance = np.abs(np.sort(u) - (np.arange(n) + 0.5) / n).max()
    assert distance < 2.5 / math.sqrt(n)
    # Neighbouring ids are independent.
    assert abs(np.corrcoef(u[1:], u[:-1])[0, 1]) < 4.5 / math.sqrt(n)


def test_every_bit_is_fair():
    hashes = hash_ids(IDS, seed=5, epoch=2)
    share = np.array([((hashes >> np.uint64(bit)) & np.uint64(1)).mean() for bit in range(64)])
    assert np.abs(share - 0.5).max() < 5 * 0.5 / math.sqrt(len(IDS))


def test_the_extreme_hashes_stay_inside_the_open_interval(monkeypatch):
    extremes = np.array([0, 2**64 - 1], np.uint64)
    monkeypatch.setattr("ted_stream.pruning.hashing.hash_ids", lambda ids, *, seed, epoch: extremes)
    low, high = uniform(np.arange(2), seed=0)
    assert 0 < low < 1e-15
    assert 1 - 1e-15 < high < 1
    assert np.isfinite(gumbel(np.arange(2), seed=0)).all()


def test_gumbel_moments():
    g = gumbel(IDS, seed=17, epoch=3)
    n = len(IDS)
    assert np.isfinite(g).all()
    variance = math.pi**2 / 6
    assert abs(g.mean() - np.euler_gamma) < 4.5 * math.sqrt(variance / n)
    # The excess kurtosis of a Gumbel variate is 12/5, so Var((g - μ)²) = (12/5 + 2) σ⁴.
    assert abs(((g - np.euler_gamma) ** 2).mean() - variance) < 4.5 * variance * math.sqrt(4.4 / n)
    assert np.array_equal(np.argsort(g), np.argsort(uniform(IDS, seed=17, epoch=3)))
    assert abs((g < 0).mean() - math.exp(-1)) < 4.5 * math.sqrt(0.2325 / n)
