"""NF4: the published values, bitsandbytes to the bit, the bound of the error, bad input."""

from statistics import NormalDist

import numpy as np
import pytest

from minidora import nf4

PUBLISHED = [  # QLoRA, appendix E
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
]
SHAPES = [(64, 64), (33, 97), (5, 13), (128, 3), (1, 1), (2, 96)]


def matrix(shape, rng, dtype=np.float32):
    """Blocks of very different sizes, some of them zero."""
    W = rng.normal(size=shape) * 10.0 ** rng.integers(-6, 6, size=(shape[0], 1))
    W[1:4] = 0
    return W.astype(dtype)


def test_the_values_are_the_published_ones_to_the_bit():
    assert nf4.VALUES.dtype == np.float32
    np.testing.assert_array_equal(nf4.VALUES, np.array(PUBLISHED, np.float32))
    assert nf4.HALF_GAP == pytest.approx((1 - 0.6961928) / 2, abs=1e-8)
    assert nf4.HALF_GAP < 0.152


def test_the_values_are_quantiles_of_a_normal_distribution():
    outermost = (29 / 30 + 31 / 32) / 2
    unit = NormalDist().inv_cdf(outermost)
    for count, values in ((8, nf4.VALUES[8:]), (7, -nf4.VALUES[6::-1])):
        p = 0.5 + (outermost - 0.5) * np.arange(1, count + 1) / count
        expected = [NormalDist().inv_cdf(each) / unit for each in p]
        np.testing.assert_allclose(values, expected, rtol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("block", [64, 128])
def test_codes_absmax_and_matrix_equal_bitsandbytes_to_the_bit(shape, block):
    torch = pytest.importorskip("torch", reason="needs PyTorch", exc_type=ImportError)
    bitsandbytes = pytest.importorskip(
        "bitsandbytes.functional",
        reason="needs bitsandbytes: pip install bitsandbytes",
        exc_type=ImportError,
    )
    settings = {"blocksize": block, "quant_type": "nf4", "compress_statistics": False}
    for seed in range(5):
        W = matrix(shape, np.random.default_rng(seed))
        q = nf4.quantise(W, block)
        codes, state = bitsandbytes.quantize_4bit(torch.from_numpy(W), **settings)
        np.testing.assert_array_equal(q.codes, codes.numpy().ravel())
        np.testing.assert_array_equal(q.absmax, state.absmax.numpy())
        if shape[1] >= block or shape[1] % 2:  # 0.50.2 gives other weights where rows are shorter
            theirs = bitsandbytes.dequantize_4bit(codes, state).numpy()
            np.testing.assert_array_equal(nf4.dequantise(q), theirs)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("block", [2, 64, 128])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_every_weight_takes_the_nearest_value(shape, block, dtype):
    W = matrix(shape, np.random.default_rng(1), np.float32)
    W = W.astype(dtype) if dtype != "float16" else (W / 1e5).astype(dtype)
    q = nf4.quantise(W, block)
    flat, back = W.ravel().astype(float), nf4.dequantise(q, np.float64).ravel()
    for i in range(0, flat.size, block):
        part = flat[i : i + block]
        absmax = np.abs(part).max()
        whole = len(part) == block
        assert q.absmax[i // block] == np.float32(absmax if whole else max(absmax, 1e-38))
        nearest = np.abs(part[:, None] - absmax * np.array(PUBLISHED)).min(1)
        np.testing.assert_allclose(
            np.abs(part - back[i : i + block]), nearest, atol=3e-7 * absmax + 1e-300
        )
    assert q.codes.dtype == np.uint8 and q.codes.size == (W.size + 1) // 2
    assert q.shape == W.shape and q.block == block


def test_a_byte_holds_the_first_of_two_codes_in_its_upper_half():
    q = nf4.quantise(np.array([[1.0, -1.0, 0.0]]), 2)
    assert q.codes.tolist() == [15 << 4 | 0, 7 << 4 | 7]
    assert q.absmax.tolist() == [1.0, pytest.approx(1e-38)]
    np.testing.assert_array_equal(nf4.dequantise(q), [[1, -1, 0]])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_error_stays_below_half_the_widest_gap_in_every_block(dtype):
    worst = 0.0
    for seed in range(5):
        W = np.random.default_rng(seed).normal(size=(257, 129)).astype(dtype)
        q = nf4.quantise(W)
        errors = nf4.block_errors(W, q)
        assert errors.shape == q.absmax.shape
        worst = max(worst, float((errors / q.absmax).max()))
    assert 0.15 < worst <= nf4.HALF_GAP * (1 + 1e-6)
    apart = np.abs(W - nf4.dequantise(q, np.float64)).ravel()
    parts = [apart[i : i + 64].max() for i in range(0, apart.size, 64)]
    np.testing.assert_array_equal(errors, parts)


def test_quantising_what_came_back_changes_nothing():
    for seed in range(5):
        q = nf4.quantise(matrix((33, 97), np.random.default_rng(seed)))
        again = nf4.quantise(nf4.dequantise(q))
        np.testing.assert_array_equal(again.codes, q.codes)
        np.testing.assert_array_equal(again.absmax, q.absmax)


def test_a_block_may_be_larger_than_any_matrix():
    W = matrix((5, 13), np.random.default_rng(3))
    for block in (66, 2**50):
        q = nf4.quantise(W, block)
        assert q.absmax.tolist() == [np.abs(W).max()]
        assert nf4.block_errors(W, q).shape == (1,)


def test_weights_too_small_for_a_normal_number_raise_no_warning():
    W = np.full((1, 4), 1e-42, np.float32)
    assert not nf4.dequantise(nf4.quantise(W)).any()


def test_what_cannot_be_quantised():
    W = np.ones((4, 6))
    for block, error in ((0, "at least 1"), (-2, "at least 1"), (63, "an even number")):
        with pytest.raises(ValueError, match=f"^block: expected {error}, got {block}"):
            nf4.quantise(W, block)
    for block in (64.0, "64", None, True):
        with pytest.raises(TypeError, match="^block: expected a whole number, got"):
            nf4.quantise(W, block)
    with pytest.raises(TypeError, match="^W: expected a real floating dtype, got dtype int64"):
        nf4.quantise(np.ones((4, 6), int))
    with pytest.raises(ValueError, match=r"^W: expected 2 dimensions, got shape \(6,\)"):
        nf4.quantise(np.ones(6))
    for bad in (np.nan, np.inf, 1e300):
        with pytest.raises(ValueError, match=r"^W: expected finite values, got 1 .* at \(2, 3\)"):
            nf4.quantise(np.where(np.arange(24).reshape(4, 6) == 15, bad, 1.0))


def test_codes_that_do_not_fit():
    q = nf4.quantise(np.ones((4, 6)), 8)
    with pytest.raises(ValueError, match=r"^codes: expected shape \(12,\) \(W \(4, 6\) in blocks"):
        nf4.dequantise(q._replace(codes=q.codes[1:]))
    with pytest.raises(ValueError, match=r"^absmax: expected shape \(2,\) .*blocks of 16\), got"):
        nf4.dequantise(q._replace(block=16))
    with pytest.raises(ValueError, match="^block: expected an even number, got 7"):
        nf4.dequantise(q._replace(block=7))
    with pytest.raises(TypeError, match="^codes: expected dtype uint8, got int64"):
        nf4.dequantise(q._replace(codes=q.codes.astype(int)))
    with pytest.raises(TypeError, match="^absmax: expected a real floating dtype, got dtype int64"):
        nf4.dequantise(q._replace(absmax=q.absmax.astype(int)))


def test_errors_of_something_else_than_what_was_quantised():
    W = np.random.default_rng(0).normal(size=(4, 6))
    q = nf4.quantise(W, 8)
    with pytest.raises(
        ValueError, match=r"^W: expected what was quantised, of shape \(4, 6\), got"
    ):
        nf4.block_errors(W.T, q)
    with pytest.raises(ValueError, match="^W: expected what was quantised, .* absmax differ in 3"):
        nf4.block_errors(2 * W, q)
    other = W.copy()
    other[1, 3] = 0.0
    with pytest.raises(
        ValueError, match="^W: expected .* got one whose codes differ in 1 places, the first 4"
    ):
        nf4.block_errors(other, q)
