"""Differences of weights: lossless, whatever the bit patterns."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rollout.delta import apply, encode


@settings(max_examples=500, deadline=None)
@given(
    size=st.integers(1, 3000),
    width=st.sampled_from([2, 4]),
    density=st.sampled_from([0.0, 0.001, 0.02, 0.2, 1.0]),
    small=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_the_new_weights_come_back_to_the_bit(
    size: int, width: int, density: float, small: bool, seed: int
):
    rng = np.random.default_rng(seed)
    kind = np.dtype(f"u{width}")
    old = rng.integers(0, 2 ** (8 * width), size, dtype=kind, endpoint=False)
    new = old.copy()
    where = rng.random(size) < density
    steps = rng.choice([1, -1, 127, -128, 128], int(where.sum())) if small else None
    if steps is None:
        new[where] = rng.integers(0, 2 ** (8 * width), int(where.sum()), dtype=kind)
    else:
        new[where] += steps.astype(f"i{width}").view(kind)
    difference = encode(old, new, densest=1.0)
    assert difference is not None
    found = old.copy()
    apply(found, difference)
    assert np.array_equal(found, new)


def test_gaps_of_every_length_around_a_byte():
    for gap in (0, 1, 253, 254, 255, 256, 509, 510, 511, 100_000):
        old = np.zeros(2 * gap + 3, dtype=np.uint16)
        new = old.copy()
        new[[gap, 2 * gap + 1]] = 1
        found = old.copy()
        apply(found, encode(old, new, densest=1.0) or b"")
        assert np.array_equal(found, new), gap


def test_nans_and_signed_zeros_survive():
    old = np.array([0.0, 1.0, np.nan, np.inf], dtype=np.float32).view(np.uint32)
    new = np.array([-0.0, np.nan, 1.0, -np.inf], dtype=np.float32).view(np.uint32)
    found = old.copy()
    apply(found, encode(old, new, densest=1.0) or b"")
    assert np.array_equal(found, new)


def test_many_changes_are_not_worth_a_difference():
    old = np.zeros(1000, dtype=np.uint16)
    assert encode(old, old + np.uint16(1)) is None
    assert len(encode(old, old) or b"x" * 999) < 100


def test_a_difference_of_other_weights_is_refused():
    difference = encode(np.zeros(10, np.uint16), np.ones(10, np.uint16), densest=1.0)
    with pytest.raises(ValueError, match="does not fit 22"):
        apply(np.zeros(11, np.uint16), difference or b"")


def test_a_percent_of_bfloat16_weights_takes_less_than_a_percent_of_their_bytes():
    rng = np.random.default_rng(0)
    old = rng.integers(0, 2**16, 1 << 20, dtype=np.uint16)
    new = old.copy()
    where = rng.random(len(old)) < 0.01
    new[where] += rng.choice([1, -1], int(where.sum())).astype(np.int16).view(np.uint16)
    assert len(encode(old, new) or b"x" * old.nbytes) <= 0.008 * old.nbytes
