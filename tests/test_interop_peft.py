"""Adapters in the layout of peft, both ways."""

import json

import compiled
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from test_models_lora import shaken

from research.interop.hf.families import FAMILIES, read_config, write_config
from research.interop.hf.safetensors import write_safetensors
from research.interop.peft import CONFIG, WEIGHTS, read_adapter, write_adapter
from research.models import lora as adapters
from research.models.config import bert, decoder
from research.types import Tokens

CFG = decoder(
    vocab_size=60,
    width=32,
    depth=2,
    num_heads=2,
    num_kv_heads=1,
    mlp=48,
    max_len=32,
    norm_eps=1e-6,
)
IDS = np.random.default_rng(0).integers(5, 60, (3, 8), dtype=np.int32)


@pytest.fixture(scope="module")
def plain():
    return compiled.init(jax.random.key(0), CFG)


@pytest.fixture(scope="module")
def lora(plain):
    new = adapters.init_lora(
        jax.random.key(1), plain, rank=3, alpha=6.0, targets="query|value|out|down"
    )
    return shaken(new)


@pytest.fixture(scope="module")
def folder(lora, tmp_path_factory):
    path = tmp_path_factory.mktemp("adapter")
    write_adapter(path, lora, CFG, base="some/model")
    return path


def states(params, cfg=CFG):
    ones = np.ones_like(IDS)
    tokens = Tokens(*map(jnp.asarray, (IDS, ones, ones > 0)))
    return np.asarray(compiled.forward(params, tokens, cfg).hidden_states)


def test_the_files_are_as_peft_names_them(folder, lora):
    fields = json.loads((folder / CONFIG).read_text())
    assert fields["peft_type"] == "LORA" and fields["r"] == 3
    assert fields["lora_alpha"] == 6 and fields["task_type"] == "FEATURE_EXTRACTION"
    assert fields["target_modules"] == ["down_proj", "o_proj", "q_proj", "v_proj"]
    assert fields["base_model_name_or_path"] == "some/model"
    tensors = load_file(folder / WEIGHTS)
    assert len(tensors) == 2 * 2 * 4
    start = "base_model.model.layers.1.self_attn"
    a = tensors[f"{start}.o_proj.lora_A.weight"]
    b = tensors[f"{start}.q_proj.lora_B.weight"]
    ours = lora["layers"]
    np.testing.assert_array_equal(a, ours["out"]["lora"]["a"][1].reshape(32, 3).T)
    np.testing.assert_array_equal(b, ours["query"]["lora"]["b"][1].reshape(3, 32).T)


def test_reading_gives_what_was_written(folder, plain, lora):
    reloaded = read_adapter(folder, plain, CFG)
    jax.tree.map(np.testing.assert_array_equal, reloaded, lora)


def test_peft_loads_what_we_write(folder, plain, lora, tmp_path):
    peft, transformers = map(pytest.importorskip, ("peft", "transformers"))
    import torch

    model = torch_model(transformers, plain, tmp_path)
    model = peft.PeftModel.from_pretrained(model, folder).eval()
    with torch.no_grad():
        got = model(torch.asarray(IDS).long()).last_hidden_state.numpy()
    np.testing.assert_allclose(states(lora), got, atol=2e-5)
    assert np.abs(states(lora) - states(plain)).max() > 1e-2


@pytest.mark.parametrize("rslora", [False, True])
def test_we_load_what_peft_writes(rslora, plain, tmp_path):
    peft, transformers = map(pytest.importorskip, ("peft", "transformers"))
    import torch

    model = torch_model(transformers, plain, tmp_path)
    config = peft.LoraConfig(
        r=4,
        lora_alpha=12,
        target_modules=["k_proj", "gate_proj"],
        init_lora_weights=False,
        use_rslora=rslora,
    )
    model = peft.get_peft_model(model, config).eval()
    with torch.no_grad():
        expected = model(torch.asarray(IDS).long()).last_hidden_state.numpy()
    model.save_pretrained(tmp_path / "adapter")
    params = read_adapter(tmp_path / "adapter", plain, CFG)
    np.testing.assert_allclose(states(params), expected, atol=2e-5)
    np.testing.assert_allclose(states(adapters.merge_lora(params)), expected, atol=2e-5)


def torch_model(transformers, params, path):
    """The same model in transformers."""
    path = path / "base"
    path.mkdir()
    write_safetensors(path, params, CFG)
    (path / "config.json").write_text(json.dumps(write_config(CFG)))
    return transformers.AutoModel.from_pretrained(path).eval()


def copy_edited(folder, path, fields=(), drop=(), tensors=()):
    """A copy of the folder with other fields and tensors."""
    path.mkdir()
    config = json.loads((folder / CONFIG).read_text()) | dict(fields)
    (path / CONFIG).write_text(json.dumps(config))
    held = load_file(folder / WEIGHTS)
    held = {name: x for name, x in held.items() if name not in drop} | dict(tensors)
    save_file(held, path / WEIGHTS)
    return path


START = "base_model.model.layers"
HEAD = f"{START}.1.self_attn.q_proj.lora_A.weight"
DEEP = {
    f"{START}.2.self_attn.q_proj.lora_{side}.weight": np.zeros(shape, np.float32)
    for side, shape in (("A", (3, 32)), ("B", (32, 3)))
}


@pytest.mark.parametrize(
    "change, message",
    [
        ({"fields": {"peft_type": "IA3"}}, "peft_type 'IA3'; we compute LORA"),
        ({"fields": {"use_dora": True}}, "use_dora True, which we do not compute"),
        ({"fields": {"r": 5}}, r"is \[3, 48\], but rank 5 .* ask for \[5, 48\]"),
        ({"drop": (HEAD,)}, f"lacks {HEAD}"),
        ({"tensors": {HEAD: np.zeros((3, 7), np.float32)}}, r"is \[3, 7\], but rank 3"),
        ({"tensors": {"x.lora_A.weight": np.zeros(1)}}, "which is no LoRA of a linear"),
        ({"tensors": DEEP}, "has layers.2.self_attn.q_proj, but the encoder has 2"),
    ],
)
def test_a_folder_that_does_not_fit_is_one_sentence(
    change, message, folder, plain, tmp_path
):
    with pytest.raises(ValueError, match=message):
        read_adapter(copy_edited(folder, tmp_path / "x", **change), plain, CFG)


def test_a_folder_without_files_says_so(plain, tmp_path):
    with pytest.raises(FileNotFoundError, match="has no adapter_config.json"):
        read_adapter(tmp_path, plain, CFG)


def test_fused_families_say_that_they_are(tmp_path):
    fields = FAMILIES["gpt_neox"].write(decoder(**small()))
    cfg = read_config({"model_type": "gpt_neox", **fields})
    new = compiled.init(jax.random.key(0), cfg)
    new = adapters.init_lora(jax.random.key(1), new, rank=2, alpha=2.0)
    with pytest.raises(ValueError, match="holds query, key, value in one; export it"):
        write_adapter(tmp_path, new, cfg)


def small():
    return {
        "vocab_size": 60,
        "width": 32,
        "depth": 2,
        "num_heads": 2,
        "num_kv_heads": 2,
        "mlp": 48,
    }


def test_names_that_others_share_become_a_pattern(tmp_path):
    cfg = bert(**{k: v for k, v in small().items() if k != "num_kv_heads"}, max_len=32)
    new = compiled.init(jax.random.key(0), cfg)
    new = adapters.init_lora(
        jax.random.key(1), new, rank=2, alpha=3.0, targets="query|up"
    )
    write_adapter(tmp_path, new, cfg)
    pattern = json.loads((tmp_path / CONFIG).read_text())["target_modules"]
    assert "intermediate" in pattern and r"\d+" in pattern
    reloaded = read_adapter(tmp_path, adapters.remove_adapters(new), cfg)
    jax.tree.map(np.testing.assert_array_equal, reloaded, new)
