import json
import subprocess
import sys
from functools import partial

import chex
import compiled
import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from research import sharding as parallel
from research.interop.hf import safetensors
from research.interop.hf.safetensors import (
    INDEX_FILE,
    read_safetensors,
    save_tensors,
    write_safetensors,
)
from research.models.config import EncoderConfig, bert, modern
from research.models.positions.methods import config_fields

TINY = {
    "bert": bert(vocab_size=60, width=32, depth=3, num_heads=4, mlp=48, max_len=40),
    "llama": modern(vocab_size=60, width=32, depth=3, num_heads=4, mlp=48, max_len=40),
    "t5": EncoderConfig(
        vocab_size=60,
        width=32,
        depth=3,
        num_heads=4,
        mlp=48,
        norm="rms",
        norm_at="pre",
        bias=(),
        act="relu",
        position="none",
        position_bias="t5",
        scale=1.0,
        type_vocab=0,
        embed_norm=False,
    ),
}
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
all_families = pytest.mark.parametrize("family", TINY)


def write_random(folder, family="bert"):
    """Our random parameters as a folder, and its tensors."""
    cfg = TINY[family]
    params = compiled.init(jax.random.key(0), cfg)
    write_safetensors(folder, params, cfg)
    return cfg, load_file(folder / "model.safetensors")


def rewrite(folder, tensors):
    save_file(tensors, folder / "model.safetensors")


@all_families
def test_write_then_read_is_the_identity(family, tmp_path, key):
    cfg = TINY[family]
    params = compiled.init(key, cfg)
    write_safetensors(tmp_path, params, cfg)
    chex.assert_trees_all_equal(read_safetensors(tmp_path, cfg), params)


def test_all_faults_are_listed_at_once(tmp_path):
    cfg, tensors = write_random(tmp_path)
    tensors["embeddings.LayerNorm.weight"] = np.zeros(5, np.float32)
    tensors["encoder.layer.3.output.dense.bias"] = np.zeros(32, np.float32)
    del tensors["encoder.layer.1.output.dense.bias"]
    del tensors["embeddings.token_type_embeddings.weight"]
    rewrite(tmp_path, tensors)
    with pytest.raises(ValueError) as error:
        read_safetensors(tmp_path, cfg)
    for fault in (
        "embeddings.LayerNorm.weight is [5] instead of [32]",
        "extra encoder.layer.3.output.dense.bias",
        "missing encoder.layer.1.output.dense.bias",
        "missing embeddings.token_type_embeddings.weight",
    ):
        assert fault in str(error.value)
    assert str(error.value).count(";") == 3


def test_the_same_name_twice(tmp_path):
    cfg, tensors = write_random(tmp_path)
    name = "embeddings.LayerNorm.weight"
    rewrite(tmp_path, tensors | {f"bert.{name}": tensors[name]})
    with pytest.raises(ValueError, match=f"repeated {name}"):
        read_safetensors(tmp_path, cfg)


def test_prefixes_heads_and_old_names(tmp_path):
    cfg, tensors = write_random(tmp_path)
    expected = read_safetensors(tmp_path, cfg)
    old = {
        f"bert.{name}".replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): value
        for name, value in tensors.items()
    }
    old["cls.predictions.bias"] = np.zeros(60, np.float32)
    old["bert.pooler.dense.bias"] = np.zeros(32, np.float32)
    old["bert.embeddings.position_ids"] = np.arange(40)[None]
    old["classifier.weight"] = np.zeros((2, 32), np.float32)
    old["qa_head.dense.weight"] = np.zeros((2, 32), np.float32)
    rewrite(tmp_path, old)
    chex.assert_trees_all_equal(read_safetensors(tmp_path, cfg), expected)


@pytest.mark.parametrize("prefix", ["model.", "model.language_model."])
def test_prefixes_of_decoders(prefix, tmp_path):
    cfg, tensors = write_random(tmp_path, "llama")
    expected = read_safetensors(tmp_path, cfg)
    renamed = {prefix + name: value for name, value in tensors.items()}
    rewrite(tmp_path, renamed | {"lm_head.weight": tensors["embed_tokens.weight"]})
    chex.assert_trees_all_equal(read_safetensors(tmp_path, cfg), expected)


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
def test_16_bit_files_become_float32(dtype, tmp_path):
    cfg, tensors = write_random(tmp_path)
    rewrite(tmp_path, {name: value.astype(dtype) for name, value in tensors.items()})
    params = read_safetensors(tmp_path, cfg)
    table = tensors["embeddings.word_embeddings.weight"]
    chex.assert_trees_all_equal_dtypes(params, jax.tree.map(np.float32, params))
    np.testing.assert_array_equal(
        params["embed"]["token"]["embedding"], table.astype(dtype).astype(np.float32)
    )


def shard(folder, tensors):
    names = sorted(tensors)
    parts = {SHARDS[0]: names[::2], SHARDS[1]: names[1::2]}
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, folder / file)
    index = {name: file for file, part in parts.items() for name in part}
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": index})
    )
    (folder / "model.safetensors").unlink()


def test_sharded_files(tmp_path, monkeypatch):
    monkeypatch.setattr(safetensors, "SLICE_BYTES", 1000)  # tables come in slices
    cfg, tensors = write_random(tmp_path)
    expected = read_safetensors(tmp_path, cfg)
    shard(tmp_path, tensors)
    chex.assert_trees_all_equal(read_safetensors(tmp_path, cfg), expected)
    (tmp_path / SHARDS[1]).unlink()
    with pytest.raises(FileNotFoundError, match=SHARDS[1]):
        read_safetensors(tmp_path, cfg)


def test_a_complete_file_counts_beside_a_left_over_index(tmp_path):
    cfg, tensors = write_random(tmp_path)
    expected = read_safetensors(tmp_path, cfg)
    shard(tmp_path, tensors)
    rewrite(tmp_path, tensors)
    for name in SHARDS:
        (tmp_path / name).unlink()
    chex.assert_trees_all_equal(read_safetensors(tmp_path, cfg), expected)
    (tmp_path / INDEX_FILE).write_text("{bad")
    with pytest.raises(ValueError, match=f"{INDEX_FILE} is not JSON"):
        read_safetensors(tmp_path, cfg)


def test_an_unknown_prefix_is_named(tmp_path):
    cfg, tensors = write_random(tmp_path)
    rewrite(tmp_path, {f"my_net.body.{name}": x for name, x in tensors.items()})
    with pytest.raises(ValueError, match=r"json: the names.*prefix 'my_net\.body\.'$"):
        read_safetensors(tmp_path, cfg)
    # Of many other faults, the first ones
    rewrite(tmp_path, {"embeddings.none": np.zeros(3, np.float32)})
    with pytest.raises(
        ValueError, match=r"extra embeddings\.none.* and \d+ more$"
    ) as e:
        read_safetensors(tmp_path, cfg)
    assert len(str(e.value)) < 800


@pytest.mark.parametrize(
    ("value", "dtype", "message"),
    [
        (np.nan, np.float32, "values in {}.* that are not finite"),
        (np.inf, ml_dtypes.bfloat16, "values in {}.* that are not finite"),
        (7, np.int8, r"{} is quantized \(I8\)"),
    ],
)
@pytest.mark.parametrize(
    "name", ["embeddings.word_embeddings.weight", "encoder.layer.1.output.dense.weight"]
)
def test_weights_that_are_no_numbers(name, value, dtype, message, tmp_path):
    cfg, tensors = write_random(tmp_path)
    tensors = {name: x.copy() for name, x in tensors.items()}
    tensors[name][3, 2] = value
    rewrite(tmp_path, tensors | {name: tensors[name].astype(dtype)})
    with pytest.raises(ValueError, match=message.format(name)):
        read_safetensors(tmp_path, cfg)


@all_families
def test_large_models_are_written_in_shards(family, tmp_path, key):
    cfg = TINY[family]
    params = compiled.init(key, cfg)
    for folder, size in (("one", "5GB"), ("shards", 10_000)):
        (tmp_path / folder).mkdir()
        write_safetensors(tmp_path / folder, params, cfg, max_shard_size=size)
    files = sorted(tmp_path.glob("shards/*.safetensors"))
    index = json.loads((tmp_path / "shards" / INDEX_FILE).read_text())
    assert len(files) > 3 and {f.name for f in files} == set(
        index["weight_map"].values()
    )
    # Byte-equal, all_families ways
    expected = load_file(tmp_path / "one" / "model.safetensors")
    assert index["metadata"]["total_size"] == sum(x.nbytes for x in expected.values())
    assert index["weight_map"].keys() == expected.keys()
    for name, file in index["weight_map"].items():
        tensor = load_file(tmp_path / "shards" / file)[name]
        assert tensor.tobytes() == expected[name].tobytes()
        assert tensor.shape == expected[name].shape
    chex.assert_trees_all_equal(read_safetensors(tmp_path / "shards", cfg), params)


def test_parameters_are_placed_by_their_shardings(tmp_path):
    cfg, tensors = write_random(tmp_path)
    shard(tmp_path, tensors)
    expected = read_safetensors(tmp_path, cfg)
    mesh = parallel.make_mesh({"fsdp": 4, "model": 2})
    sharding = partial(parallel.shardings, mesh=mesh)
    params = read_safetensors(tmp_path, cfg, sharding)
    chex.assert_trees_all_equal(params, expected)
    assert jax.tree.map(lambda x: x.sharding, params) == sharding(expected)
    kernel = params["layers"]["up"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (3, 8, 24)


MEASURE = """
import json, sys
from pathlib import Path
import jax
jax.config.update("jax_platforms", "cpu")
from research.models.positions.methods import encoder_config
from research.interop.hf.safetensors import read_safetensors

def peak():  # unlike getrusage's, not that of the process that started this one
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])

device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
sharding = {"host": None, "placed": lambda tree: jax.tree.map(lambda _: device, tree)}
for name in ("small", "large"):  # small for what the program itself needs
    folder = Path(sys.argv[1]) / name
    cfg = encoder_config(json.loads((folder / "encoder.json").read_text()))
    before = peak()
    params = read_safetensors(folder, cfg, sharding[sys.argv[2]])
    print(peak() - before)
"""


def write_zeros(folder, cfg, dtype):
    """Writes five shards of zeros; the size of the model in float32, in bytes."""
    tree = jax.eval_shape(lambda: compiled.init(jax.random.key(0), cfg))
    params = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), tree)
    folder.mkdir()
    (folder / "encoder.json").write_text(json.dumps(config_fields(cfg)))
    write_safetensors(folder, params, cfg)
    tensors = load_file(folder / "model.safetensors")
    names, files = sorted(tensors), {}
    for i in range(5):
        part = {name: tensors[name].astype(dtype) for name in names[i::5]}
        save_file(part, folder / f"{i}.safetensors")
        files |= dict.fromkeys(part, f"{i}.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": files}))
    (folder / "model.safetensors").unlink()
    return sum(x.nbytes for x in jax.tree.leaves(params))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("vocab", "dtype", "placement"),
    [
        (20_000, np.float32, "host"),
        # Most of it is one table
        (60_000, ml_dtypes.bfloat16, "host"),
        (9_000, np.float32, "placed"),
    ],
)
def test_peak_of_memory(vocab, dtype, placement, tmp_path):
    write_zeros(tmp_path / "small", TINY["bert"], dtype)
    cfg = bert(vocab_size=vocab, width=512, depth=6, num_heads=8, mlp=2_048)
    size = write_zeros(tmp_path / "large", cfg, dtype)
    command = [sys.executable, "-c", MEASURE, str(tmp_path), placement]
    peak = int(subprocess.check_output(command).split()[-1])
    assert peak < 1.3 * size, peak / size


def test_no_weights_or_broken_ones(tmp_path):
    cfg = TINY["bert"]
    with pytest.raises(FileNotFoundError, match="has no model.safetensors"):
        read_safetensors(tmp_path, cfg)
    (tmp_path / "model.safetensors").write_bytes(b"not safetensors at all")
    with pytest.raises(ValueError, match="is not a safetensors file"):
        read_safetensors(tmp_path, cfg)


def test_a_file_that_cannot_be_written(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise SafetensorError("No space left on device")

    monkeypatch.setattr("research.interop.hf.safetensors.save_file", fail)
    with pytest.raises(OSError, match=r"a.safetensors cannot be written: No space"):
        save_tensors(tmp_path / "a.safetensors", {})


def test_others_may_read_what_is_written(tmp_path):
    write_random(tmp_path)
    (tmp_path / "plain").touch()
    modes = [(tmp_path / f).stat().st_mode for f in ("plain", "model.safetensors")]
    assert modes[0] == modes[1]
