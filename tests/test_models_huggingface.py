import json

import chex
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from research.models import encoder
from research.models.config import bert, modern
from research.models.families import FAMILIES, read_config, write_config
from research.models.huggingface import (
    IGNORED,
    OPS,
    ROWS,
    read_safetensors,
    save_tensors,
    write_safetensors,
)
from research.structs import Tokens

TINY = {
    "bert": bert(vocab=60, width=32, depth=3, heads=4, mlp=48, max_len=40),
    "llama": modern(vocab=60, width=32, depth=3, heads=4, mlp=48, max_len=40),
}
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
both = pytest.mark.parametrize("family", TINY)


def reference(family, folder):
    """A random model of `transformers`, noise on every weight, saved in the folder."""
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    fields = write_config(TINY[family])
    config = transformers.AutoConfig.for_model(**fields)
    model = transformers.AutoModel.from_config(config).eval()
    with torch.no_grad():
        for value in model.parameters():  # biases and scales too
            value.add_(torch.randn_like(value) * 0.1)
    model.save_pretrained(folder)
    return model


def rows(family):
    """Two texts of 7 and 4 tokens, padded to the right to 9."""
    ids = np.random.default_rng(0).integers(1, TINY[family].vocab, (2, 9))
    mask = np.arange(9)[None] < np.array([[7], [4]])
    return ids.astype(np.int32), mask


def theirs(model, ids, mask):
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        output = model(
            input_ids=torch.tensor(ids, dtype=torch.long),
            attention_mask=torch.tensor(mask, dtype=torch.long),
            output_hidden_states=True,
        )
    return [x.numpy() for x in output.hidden_states], output.last_hidden_state.numpy()


def ours(params, cfg, ids, mask):
    tokens = Tokens(jnp.asarray(ids), jnp.asarray(mask, jnp.int32), jnp.asarray(mask))
    return encoder.forward(params, tokens, cfg, every_layer=True)


def written(folder, family="bert"):
    """Our random parameters as a folder, and its tensors."""
    cfg = TINY[family]
    params = encoder.init(jax.random.key(0), cfg)
    write_safetensors(folder, params, cfg)
    return cfg, load_file(folder / "model.safetensors")


def rewrite(folder, tensors):
    save_file(tensors, folder / "model.safetensors")


@both
def test_hidden_states_of_every_layer(family, tmp_path):
    model = reference(family, tmp_path)
    cfg = read_config(json.loads((tmp_path / "config.json").read_text()))
    params = read_safetensors(tmp_path, cfg)
    ids, mask = rows(family)
    states, final = theirs(model, ids, mask)
    out = ours(params, cfg, ids, mask)
    np.testing.assert_allclose(out.tokens[mask], final[mask], atol=1e-5)
    for layer, state in enumerate(states):
        state = state[mask]
        if family == "llama" and layer < cfg.depth:  # they norm the last one only
            rms = np.sqrt((state**2).mean(-1, keepdims=True) + cfg.norm_eps)
            state = state / rms * params["final_norm"]["scale"]
        np.testing.assert_allclose(out.layers[layer][mask], state, atol=1e-5)


@both
def test_import_then_export_is_the_identity(family, tmp_path):
    reference(family, tmp_path)
    cfg = read_config(json.loads((tmp_path / "config.json").read_text()))
    params = read_safetensors(tmp_path, cfg)
    (tmp_path / "again").mkdir()
    write_safetensors(tmp_path / "again", params, cfg)
    before = load_file(tmp_path / "model.safetensors")
    after = load_file(tmp_path / "again" / "model.safetensors")
    assert after.keys() == {k for k in before if not k.startswith(IGNORED)}
    for name, value in after.items():
        assert value.tobytes() == before[name].tobytes(), name


@both
def test_depth_pruned_export_is_the_first_layers(family, tmp_path):
    transformers = pytest.importorskip("transformers")
    reference(family, tmp_path)
    cfg = read_config(json.loads((tmp_path / "config.json").read_text()))
    params = read_safetensors(tmp_path, cfg)
    ids, mask = rows(family)
    states = ours(params, cfg, ids, mask).layers
    cut = tmp_path / "cut"
    cut.mkdir()
    params, cfg = encoder.truncated(params, cfg, 2)
    write_safetensors(cut, params, cfg)
    (cut / "config.json").write_text(json.dumps(write_config(cfg)))
    model = transformers.AutoModel.from_pretrained(cut).eval()
    _, final = theirs(model, ids, mask)
    np.testing.assert_allclose(states[2][mask], final[mask], atol=1e-5)


@both
def test_write_then_read_is_the_identity(family, tmp_path, key):
    cfg = TINY[family]
    params = encoder.init(key, cfg)
    write_safetensors(tmp_path, params, cfg)
    chex.assert_trees_all_equal(read_safetensors(tmp_path, cfg), params)


@both
def test_every_row_and_family_is_used(family, tmp_path):
    assert ROWS.keys() == FAMILIES.keys() == TINY.keys()
    assert all(row.op in OPS for row in ROWS[family])
    _, tensors = written(tmp_path, family)
    kinds = {row.hf.replace("{l}", "0") for row in ROWS[family]}
    assert kinds >= {name for name in tensors if "1" not in name and "2" not in name}


def test_all_faults_are_listed_at_once(tmp_path):
    cfg, tensors = written(tmp_path)
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
    cfg, tensors = written(tmp_path)
    name = "embeddings.LayerNorm.weight"
    rewrite(tmp_path, tensors | {f"bert.{name}": tensors[name]})
    with pytest.raises(ValueError, match=f"repeated {name}"):
        read_safetensors(tmp_path, cfg)


def test_prefixes_heads_and_old_names(tmp_path):
    cfg, tensors = written(tmp_path)
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
    rewrite(tmp_path, old)
    chex.assert_trees_all_equal(read_safetensors(tmp_path, cfg), expected)


@pytest.mark.parametrize("prefix", ["model.", "model.language_model."])
def test_prefixes_of_decoders(prefix, tmp_path):
    cfg, tensors = written(tmp_path, "llama")
    expected = read_safetensors(tmp_path, cfg)
    renamed = {prefix + name: value for name, value in tensors.items()}
    rewrite(tmp_path, renamed | {"lm_head.weight": tensors["embed_tokens.weight"]})
    chex.assert_trees_all_equal(read_safetensors(tmp_path, cfg), expected)


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
def test_16_bit_files_become_float32(dtype, tmp_path):
    cfg, tensors = written(tmp_path)
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


def test_sharded_files(tmp_path):
    cfg, tensors = written(tmp_path)
    expected = read_safetensors(tmp_path, cfg)
    shard(tmp_path, tensors)
    chex.assert_trees_all_equal(read_safetensors(tmp_path, cfg), expected)
    (tmp_path / SHARDS[1]).unlink()
    with pytest.raises(FileNotFoundError, match=SHARDS[1]):
        read_safetensors(tmp_path, cfg)


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

    monkeypatch.setattr("research.models.huggingface.save_file", fail)
    with pytest.raises(OSError, match=r"a.safetensors cannot be written: No space"):
        save_tensors(tmp_path / "a.safetensors", {})


def test_others_may_read_what_is_written(tmp_path):
    written(tmp_path)
    (tmp_path / "plain").touch()
    modes = [(tmp_path / f).stat().st_mode for f in ("plain", "model.safetensors")]
    assert modes[0] == modes[1]
