"""Codes of vectors: their values, what they stand for, and sentence-transformers'."""

import numpy as np
import pytest

from research.transforms.quantization import (
    BinaryQuantizer,
    FloatQuantizer,
    ScalarQuantizer,
    fit_binary,
    fit_int2,
    fit_int4,
    fit_int8,
    fit_uint8,
    make_bfloat16,
    make_float8,
    make_float16,
)

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(300, 20)).astype(np.float32)
X /= np.linalg.norm(X, axis=1, keepdims=True)
ROWS = np.array([[-1, 0, 0.25], [1, 2, 0.5], [0, 1, 0.25]], np.float32)
RANGES = np.stack([ROWS.min(0), ROWS.max(0)])


def test_codes_of_bytes_by_hand():
    unsigned, signed = (ScalarQuantizer(RANGES, name) for name in ("uint8", "int8"))
    codes = [[0, 0, 0], [254, 254, 254], [127, 127, 0]]
    np.testing.assert_array_equal(unsigned.encode(ROWS), codes)
    np.testing.assert_array_equal(signed.encode(ROWS), np.array(codes) - 128)
    assert signed.encode(ROWS).dtype == np.int8
    # Out of range, and a dimension that is always the same
    beyond = signed.encode(np.array([[5, -9, 0.3]], np.float32))
    np.testing.assert_array_equal(beyond, [[127, -128, -77]])
    constant = ScalarQuantizer(np.full((2, 3), 0.7, np.float32), "int8")
    assert (constant.encode(np.full((1, 3), 0.7)) == -128).all()
    np.testing.assert_allclose(constant.decode(constant.encode(ROWS)), 0.7, atol=1e-6)


@pytest.mark.parametrize("name", ["int8", "uint8"])
def test_a_code_stands_for_the_middle_of_its_step(name):
    fitted = ScalarQuantizer(np.stack([X.min(0), X.max(0)]), name)
    step = np.ptp(X, axis=0) / 255
    error = fitted.decode(fitted.encode(X)) - X
    assert (np.abs(error) <= 0.5001 * step + 1e-7).all()
    assert np.abs(error.mean(0) / step).max() < 0.1  # no bias
    # What stands for a code has that code.
    codes = np.broadcast_to(
        np.arange(256)[:, None] - 128 * (name == "int8"), (256, 20)
    ).astype(name)
    np.testing.assert_array_equal(fitted.encode(fitted.decode(codes)), codes)


@pytest.mark.parametrize("precision", ["int8", "uint8", "binary", "ubinary"])
def test_codes_are_those_of_sentence_transformers(precision):
    quantize = pytest.importorskip("sentence_transformers").quantize_embeddings
    sample, x = X[:200], np.concatenate([X[200:], 3 * X[:9], 0 * X[:1]])
    theirs = quantize(x, precision, calibration_embeddings=sample)
    if precision.endswith("int8"):
        fit = {"int8": fit_int8, "uint8": fit_uint8}[precision]
        ours = fit(sample)
        given = quantize(x, precision, ranges=ours.ranges)
        np.testing.assert_array_equal(given, theirs)
        codes = ours.encode(x)
    else:
        codes = fit_binary(sample).encode(x)
        if precision == "binary":
            codes = (codes - 128).astype(np.int8)
    np.testing.assert_array_equal(codes, theirs)
    assert codes.dtype == theirs.dtype


def test_the_ends_of_a_sample_can_be_left_out():
    x = np.concatenate([X, np.full((1, 20), 50, np.float32)])
    assert fit_int8(x).ranges[1].min() == 50
    ranges = fit_int8(x, clip=2.5).ranges
    assert ranges[1].max() < 1
    np.testing.assert_allclose(ranges, np.percentile(x, (2.5, 97.5), axis=0), rtol=1e-5)


@pytest.mark.parametrize(
    "format, value, code, decoded",
    [
        ("e4m3", 0.1, 29, 0.1015625),
        ("e5m2", 0.1, 46, 0.09375),
        ("e4m3", -0.3, None, -0.3125),
        ("e4m3", 500, None, 448),
        ("e5m2", 500, None, 512),
        ("e4m3", 2**-10, 0, 0),
        ("e5m2", 2**-10, None, 2**-10),
        ("bfloat16", -0.3, None, -0.30078125),
        ("float16", 0.1, None, 0.0999755859375),
        ("float16", 1e9, None, 65504),
    ],
)
def test_floats_of_few_bits_by_hand(format, value, code, decoded):
    quantizer = FloatQuantizer(1, format)
    codes = quantizer.encode(np.array([[value]]))
    assert quantizer.decode(codes)[0, 0] == decoded
    assert code is None or codes[0, 0] == code


def test_a_scale_makes_small_floats_finer():
    errors = []
    for scale in (1.0, 16.0):
        quantizer = make_float8(X[:0], scale=scale)
        decoded = quantizer.decode(quantizer.encode(X / 100))
        errors.append(np.abs(decoded - X / 100).mean())
    assert errors[1] < errors[0] / 2
    # Powers of two are exact: nothing else changes.
    coarse, fine = (make_float8(X, scale=s).encode(X * 8) for s in (1.0, 2.0))
    big = np.abs(X) > 0.1
    decoded = make_float8(X, scale=2.0).decode(fine)
    np.testing.assert_array_equal(
        make_float8(X, scale=1.0).decode(coarse)[big], decoded[big]
    )


def test_bits_by_hand():
    x = np.array([[0.1, -0.2, 0, 0.3, -0.5, 0.6, 0.7, -0.1, 0.2]], np.float32)
    quantizer = fit_binary(x[:0])
    np.testing.assert_array_equal(quantizer.encode(x), [[150, 128]])
    bits = np.array([[1, -1, -1, 1, -1, 1, 1, -1, 1]])
    np.testing.assert_array_equal(quantizer.decode(quantizer.encode(x)), bits)
    query = np.array([0.5, -0.1, 0.2, 0.4, 0.1, -0.3, 0.2, 0.1, 0.3])
    np.testing.assert_allclose(bits @ query, 0.8)
    np.testing.assert_allclose((bits + 1) / 2 @ query, 1.1)


def test_medians_split_each_dimension_in_halves():
    quantizer = fit_binary(X + 1, threshold="median", rescore=2)
    bits = quantizer.decode(quantizer.encode(X + 1))
    assert np.abs(bits.mean(0)).max() <= 2 / 300
    np.testing.assert_allclose(
        quantizer.center_queries(X + 1), X + 1 - quantizer.thresholds
    )
    assert quantizer.rescore == 2


@pytest.mark.parametrize(
    "fit, size",
    [
        (fit_int8, 20),
        (fit_uint8, 20),
        (make_float8, 20),
        (make_float16, 40),
        (make_bfloat16, 40),
        (fit_binary, 3),
    ],
)
def test_codes_have_the_bytes_that_they_are_said_to_have(fit, size):
    quantizer = fit(X)
    codes = quantizer.encode(X)
    assert quantizer.bytes_per_vector == codes[0].nbytes == size
    assert quantizer.width == 20
    decoded = quantizer.decode(codes)
    assert decoded.shape == X.shape and decoded.dtype == np.float32
    # Some rows are encoded as all of them are.
    np.testing.assert_array_equal(quantizer.encode(X[3:5]), codes[3:5])


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: fit_int8(X[:0]), "int8 is fitted to texts; name them by --tra"),
        (lambda: fit_int8(X[:99]), "int8 is fitted to at least 100 vectors, not to 99"),
        (lambda: fit_uint8(X, clip=50), "uint8's clip is 50; it should be a percent"),
        (lambda: make_float8(X, format="e3"), "format is 'e3'; allowed: e4m3, e5m2"),
        (lambda: fit_binary(X, threshold="mean"), "allowed: zero, median"),
        (lambda: fit_binary(X[:9], threshold="median"), "at least 100 vectors, not to"),
    ],
)
def test_what_cannot_be_fitted_is_one_sentence(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_thresholds_are_of_one_vector():
    assert BinaryQuantizer(np.zeros(12, np.float32)).bytes_per_vector == 2


def test_codes_of_two_and_four_bits_by_hand():
    x = np.array([[-2, -0.9, 0.1, 1.5, 9]], np.float32)
    two, four = (fit(x[:0], limit=2.0) for fit in (fit_int2, fit_int4))
    # Codes 0, 1, 2, 3 | 3 and 0, 4, 8, 14, 15, the first value in the lowest bits
    np.testing.assert_array_equal(two.encode(x), [[0b11100100, 0b11]])
    np.testing.assert_array_equal(four.encode(x), [[0x40, 0xE8, 0x0F]])
    np.testing.assert_allclose(two.decode(two.encode(x)), [[-1.5, -0.5, 0.5, 1.5, 1.5]])
    assert two.bytes_per_vector == 2 and four.bytes_per_vector == 3


def test_a_step_of_fewer_bits_is_wider():
    fitted = [fit(X, clip=0.0) for fit in (fit_int4, fit_int2)]
    for bits, quantizer in zip((4, 2), fitted, strict=True):
        error = np.abs(quantizer.decode(quantizer.encode(X)) - X)
        assert (error <= 0.5001 * np.ptp(X, axis=0) / 2**bits + 1e-7).all()
    with pytest.raises(ValueError, match="int4 is fitted to at least 100 vectors"):
        fit_int4(X[:99])
    with pytest.raises(ValueError, match="int2's limit is -1; it should be positive"):
        fit_int2(X, limit=-1)
