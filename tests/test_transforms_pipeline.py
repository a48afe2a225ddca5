"""Transforms as text: what is fitted in which order, and what a file keeps of it."""

import json

import numpy as np
import pytest
from safetensors.numpy import save

from research.transforms.codebooks import ProductQuantizer
from research.transforms.linear import LinearMap, fit_pca
from research.transforms.pipeline import (
    TRANSFORMS,
    VectorTransform,
    fit_transform,
    load_transform,
    parse_transform,
    save_transform,
)
from research.transforms.quantization import fit_binary, fit_int8

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(300, 8)) @ RANDOM.normal(size=(8, 8)) + 1


def test_codes_are_fitted_to_the_mapped_and_normalized_vectors():
    fitted = fit_transform("pca(4) | int8(clip=1.0)", X, normalize=True)
    z = fit_pca(X, 4).apply(X)
    np.testing.assert_allclose(fitted.apply_maps(X), z)
    unit = z / np.linalg.norm(z, axis=1, keepdims=True)
    want = fit_int8(unit.astype(np.float32), clip=1.0)
    np.testing.assert_allclose(fitted.quantizer.ranges, want.ranges)
    # Vectors that are not normalized are encoded as they are.
    raw = fit_transform("int8", X, normalize=False)
    np.testing.assert_allclose(raw.quantizer.ranges, [X.min(0), X.max(0)], rtol=1e-6)
    assert raw.maps == ()


@pytest.mark.parametrize(
    "text",
    [
        "pca(4) | int8()",
        "whitening() | random_projection(5, seed=1)",
        "binary(threshold='median', rescore=2)",
        "float8(format='e5m2', scale=4.0)",
        "pca(6, center=False) | bfloat16()",
    ],
)
def test_a_file_keeps_all_of_a_transform(text, tmp_path):
    fitted = fit_transform(text, X, normalize=True)
    save_transform(fitted, tmp_path / "a" / "transform.safetensors")
    loaded = load_transform(tmp_path / "a" / "transform.safetensors")
    assert loaded.text == text and loaded.describe()[0] == fitted.describe()[0]
    z = fitted.apply_maps(X)
    np.testing.assert_array_equal(loaded.apply_maps(X), z)
    if fitted.quantizer is None:
        assert loaded.quantizer is None
        return
    codes = fitted.quantizer.encode(z)
    np.testing.assert_array_equal(loaded.quantizer.encode(z), codes)
    np.testing.assert_array_equal(
        loaded.quantizer.decode(codes), fitted.quantizer.decode(codes)
    )
    assert type(loaded.quantizer) is type(fitted.quantizer)


def test_a_codebook_is_kept_with_and_without_rotation(tmp_path):
    centroids = RANDOM.normal(size=(2, 256, 4)).astype(np.float32)
    for rotation in (None, np.eye(8, dtype=np.float32)):
        codebook = ProductQuantizer(centroids, rotation)
        save_transform(VectorTransform("pq(2)", (), codebook), tmp_path / "t")
        loaded = load_transform(tmp_path / "t").quantizer
        np.testing.assert_array_equal(loaded.centroids, centroids)
        assert (loaded.rotation is None) == (rotation is None)


def test_what_needs_no_texts_is_fitted_to_none():
    none = np.empty((0, 8))
    for text in ("float8", "float16()", "bfloat16", "binary", "random_projection(3)"):
        fitted = fit_transform(text, none, normalize=True)
        assert fitted.apply_maps(X).shape == (300, 3 if "random" in text else 8)
    for text in ("int8", "pca(3)", "whitening", "pq(4)", "binary(threshold='median')"):
        with pytest.raises(ValueError, match="fitted to texts; name them by --transf"):
            fit_transform(text, none, normalize=True)


@pytest.mark.parametrize(
    "text, message",
    [
        ("int9", "unknown name 'int9'; known: .*int8"),
        ("int8 | pca(4)", "int8 makes codes, so that it comes last"),
        ("pca", "pca needs a value for dim"),
        ("pca(4, 5)", "too many positional arguments"),
        ("pca(dim='all')", "pca's dim is 'all'; it takes a whole number"),
        ("int8(low=3)", "int8 has no argument low; it has .*clip"),
        ("float8(scale=0)", "float8's scale is 0; it should be above 0"),
        ("binary(rescore=-1)", "binary's rescore is -1; it should be at least 0"),
        ("pca(4) and int8", "is no call"),
    ],
)
def test_what_is_no_transform_is_one_sentence(text, message):
    with pytest.raises(ValueError, match=message):
        parse_transform(text)


def test_a_damaged_file_is_named(tmp_path):
    file = tmp_path / "transform.safetensors"
    for content in (b"", b"nonsense", b"\x08\0\0\0\0\0\0\0{}      "):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=f"{file} holds no transform"):
            load_transform(file)


def test_codes_without_their_ranges_are_refused(tmp_path):
    file = tmp_path / "transform.safetensors"
    fitted = fit_transform("int8", X, normalize=True)
    parts, _ = fitted.describe()
    content = json.dumps({"format": 1, "text": "int8", "parts": parts})
    file.write_bytes(save({}, metadata={"transform": content}))
    message = f"{file} holds no transform: its ScalarQuantizer has no ranges"
    with pytest.raises(ValueError, match=message):
        load_transform(file)


def test_equal_texts_of_other_samples_are_other_transforms():
    arrays = [
        fit_transform("pca(2)", x, normalize=True).describe()[1]
        for x in (X, X[:200], X)
    ]
    hashes = [b"".join(a.tobytes() for a in part.values()) for part in arrays]
    assert hashes[0] != hashes[1] and hashes[0] == hashes[2]


def test_every_name_is_in_the_table_once():
    assert {"pca", "whitening", "int8", "uint8", "float8", "binary", "pq"} <= set(
        TRANSFORMS
    )
    maps = (LinearMap(np.zeros(8), np.eye(8)),)
    rest = VectorTransform("pca(8) | binary", maps, fit_binary(X)).split_quantizer()
    assert rest.text == "binary" and rest.maps == () and rest.quantizer.width == 8
    assert VectorTransform("pca(8)", maps).split_quantizer() is None
