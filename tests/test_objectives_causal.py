"""Language modelling: its loss, what it may see, perplexity, a decoder's workdir."""

import dataclasses
import json
from functools import partial

import compiled
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from packed import lively

from configs import decoder
from research.eval.perplexity import cut_windows, perplexity
from research.experiment.workdir import prepare_run
from research.inference import model as pretrained
from research.interop import load
from research.interop.sentence_transformers.write import export
from research.losses.contrastive import infonce
from research.losses.matryoshka import SIZE_LOSSES
from research.losses.registry import score_loss
from research.models import encoder
from research.models.config import modern
from research.models.pooling.registry import BASIC_POOLINGS
from research.objectives.causal import causal_lm, next_token_loss
from research.objectives.contrastive import contrastive
from research.objectives.gritlm import gritlm
from research.objectives.registry import OBJECTIVES
from research.text.tokenization import (
    CAUSAL_SPECIAL_TOKENS,
    tokenize_texts,
    train_tokenizer,
)
from research.train import loop
from research.types import Batch, Labels, PretrainingBatch, TokenizerInfo, Tokens

pytestmark = pytest.mark.usefixtures("one_device")
SHAPE = {
    "vocab_size": 50,
    "width": 32,
    "depth": 2,
    "num_heads": 2,
    "mlp": 48,
    "max_len": 32,
}
CFG = modern(causal=True, **SHAPE)
TEXT = TokenizerInfo(50, None, (0, 1, 2, 3))
LENGTHS = ((5, 1, 9), (12, 3), (2,))


@pytest.fixture(scope="module")
def params():
    return lively(partial(encoder.init, cfg=CFG))


@pytest.fixture(scope="module")
def rows():
    """Packed rows [3, 18] of texts of LENGTHS tokens."""
    ids, segment = np.zeros((2, 3, 18), np.int32)
    noise = np.random.default_rng(1)
    for row, lengths in enumerate(LENGTHS):
        segment[row, : sum(lengths)] = np.repeat(range(1, len(lengths) + 1), lengths)
        ids[row, : sum(lengths)] = noise.integers(4, 50, sum(lengths))
    tokens = Tokens(jnp.asarray(ids), jnp.asarray(segment), jnp.asarray(segment > 0))
    return PretrainingBatch(tokens, jnp.asarray((segment > 0).astype(np.int32)))


@pytest.fixture(scope="module")
def run():
    """Compiled: params, tokens -> (mean, each)."""
    return jax.jit(lambda params, tokens: next_token_loss(params, tokens, CFG))


def test_the_loss_is_that_of_a_loop_over_texts(params, rows):
    """Each text alone, by log-softmax in float64."""
    table = np.asarray(params["embed"]["token"]["embedding"], np.float64)
    packed, segment = map(np.asarray, rows.tokens[:2])
    texts = [
        packed[row, segment[row] == text]
        for row, lengths in enumerate(LENGTHS)
        for text in range(1, len(lengths) + 1)
    ]
    # Each in a row of its own, padded to 12 tokens
    ids = np.stack([np.pad(text, (0, 12 - len(text))) for text in texts])
    real = np.arange(12)[None] < np.array(list(map(len, texts)))[:, None]
    tokens = Tokens(*map(jnp.asarray, (ids, real.astype(np.int32), real)))
    states, _ = compiled.apply(params, tokens, CFG)
    losses, right = [], []
    for text, x in zip(texts, np.asarray(states, np.float64), strict=True):
        for z, label in zip((x @ table.T)[: len(text) - 1], text[1:], strict=True):
            losses.append(np.log(np.exp(z).sum()) - z[label])
            right.append(z.argmax() == label)
    objective = OBJECTIVES["causal_lm"](CFG, TEXT)
    value, metrics, _ = jax.jit(objective.loss)(
        {"encoder": params}, {}, rows, jax.random.key(0)
    )
    assert len(losses) == 4 + 0 + 8 + 11 + 2 + 1
    np.testing.assert_allclose(value, np.mean(losses), rtol=1e-5)
    np.testing.assert_allclose(metrics["perplexity"], np.exp(np.mean(losses)), 1e-4)
    np.testing.assert_allclose(metrics["accuracy"], np.mean(right), rtol=1e-6)


def test_no_text_of_a_row_helps_another(params, rows, run):
    """Other tokens in the first text of a row change no loss of the second."""
    before = run(params, rows.tokens)[1].loss
    ids = rows.tokens.token_ids.at[0, :5].add(7) % 50
    after = run(params, rows.tokens._replace(token_ids=ids))[1].loss
    np.testing.assert_allclose(after[0, 4:], before[0, 4:], atol=1e-6)
    assert not before[0, 4]  # the last token of a text predicts nothing
    assert (np.abs(after - before)[0, :4] > 1e-3).all()


def test_padding_changes_nothing(params, rows, run):
    wider = jax.tree.map(lambda x: jnp.pad(x, ((0, 2), (0, 7))), rows.tokens)
    mean, each = run(params, rows.tokens)
    again, more = run(params, wider)
    np.testing.assert_allclose(again, mean, rtol=1e-6)
    np.testing.assert_allclose(more.loss[:3, :17], each.loss, atol=1e-6)


def test_a_later_token_changes_no_earlier_loss(params, rows, run):
    ids = rows.tokens.token_ids.at[1, 8].add(5)
    before, after = (
        run(params, rows.tokens._replace(token_ids=x))[1].loss[1]
        for x in (rows.tokens.token_ids, ids)
    )
    np.testing.assert_array_equal(before[:7], after[:7])
    assert (np.abs(before - after)[7:11] > 1e-4).all()


def test_the_gradient_is_that_of_whole_logits(params, rows):
    """The chunked loss's own gradient, to the last parameter."""

    def plain(params):
        x, _ = encoder.apply(params, rows.tokens, CFG)
        z = jnp.einsum("rsd,vd->rsv", x, params["embed"]["token"]["embedding"])
        log = jax.nn.log_softmax(z[:, :-1])
        picked = jnp.take_along_axis(log, rows.tokens.token_ids[:, 1:, None], 2)[..., 0]
        segment = rows.tokens.segment_ids
        real = (segment[:, 1:] == segment[:, :-1]) & (segment[:, 1:] > 0)
        return -jnp.where(real, picked, 0.0).sum() / real.sum(dtype=jnp.float32)

    ours = jax.jit(jax.grad(lambda p: next_token_loss(p, rows.tokens, CFG)[0]))(params)
    theirs = jax.jit(jax.grad(plain))(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), ours, theirs)


def test_an_encoder_that_sees_the_answer_is_refused():
    with pytest.raises(ValueError, match="encoder.causal is False"):
        causal_lm(modern(**SHAPE), TEXT)


def model(params, tokenizer, **changes):
    """A decoder as `pretrained.load` gives it."""
    prompts = {"query": "", "document": ""}
    found = pretrained.EmbeddingModel(params, CFG, tokenizer, "mean", 32, prompts, True)
    return found._replace(**changes)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["the old leaf of a tree 12", "A new root"], 300, "causal")


def test_transformers_has_the_same_loss_and_states(params, rows, tokenizer, tmp_path):
    """LlamaForCausalLM on the exported folder, with tied and with untied weights."""
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    export(model(jax.device_get(params), tokenizer), tmp_path / "out")
    bare = transformers.LlamaModel.from_pretrained(tmp_path / "out").eval()
    config = transformers.LlamaConfig.from_pretrained(tmp_path / "out")
    ids = rows.tokens.token_ids[1:2, :12]
    ones = jnp.ones_like(ids)
    tokens = Tokens(ids, ones, ones > 0)
    asked = torch.tensor(np.asarray(ids), dtype=torch.long)
    run = jax.jit(
        lambda params: (
            encoder.apply(params, tokens, CFG)[0],
            next_token_loss(params, tokens, CFG)[0],
        )
    )
    kernel = jax.random.normal(jax.random.key(9), (50, 32))
    for tied in (True, False):
        config.tie_word_embeddings = tied
        theirs = transformers.LlamaForCausalLM(config).eval()
        theirs.model.load_state_dict(bare.state_dict())
        if tied:
            theirs.tie_weights()
            states, loss = run(params)
        else:
            theirs.lm_head.weight.data = torch.tensor(np.asarray(kernel))
            states, loss = run({**params, "lm_head": {"kernel": kernel}})
        with torch.no_grad():
            expected = bare(input_ids=asked).last_hidden_state.numpy()
            expected_loss = theirs(input_ids=asked, labels=asked).loss.item()
        np.testing.assert_allclose(states, expected, atol=1e-5)
        np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)


@pytest.mark.parametrize("name", ["causal_lm", "gem", "mntp"])
def test_an_untied_output_layer_is_trained_in_place_of_the_token_table(
    params, rows, name
):
    cfg = dataclasses.replace(CFG, causal=name != "mntp")
    tokenizer = TEXT._replace(end_id=2, blank_id=4)
    objective = OBJECTIVES[name](cfg, tokenizer)
    key, table = jax.random.key(0), params["embed"]["token"]["embedding"]

    @jax.jit
    def value_and_grad(params):
        return jax.value_and_grad(
            lambda p: objective.loss({"encoder": p}, {}, rows, key).value
        )(params)

    tied, _ = value_and_grad(params)
    untied, slope = value_and_grad({**params, "lm_head": {"kernel": table}})
    np.testing.assert_allclose(untied, tied, rtol=1e-6)
    assert np.abs(slope["lm_head"]["kernel"]).max() > 0
    doubled, _ = value_and_grad({**params, "lm_head": {"kernel": 2 * table}})
    assert abs(doubled - tied) > 1e-3


def test_a_decoders_tokenizer(tokenizer):
    assert [tokenizer.token_to_id(name) for name in CAUSAL_SPECIAL_TOKENS] == [
        0,
        1,
        2,
        3,
    ]
    (ids,) = tokenize_texts(tokenizer, ["The 12 oaks,  Ünder"], 64)
    assert ids[0] == 1 and (ids[1:] > 3).all()
    assert tokenizer.decode(ids.tolist()) == "The 12 oaks,  Ünder"
    with pytest.raises(ValueError, match="known: wordpiece, bpe, causal"):
        train_tokenizer(["a"], 300, "char")


def test_windows_predict_every_token_once(tokenizer):
    whole = tokenizer.encode("the old leaf of a tree", add_special_tokens=False).ids
    rows, given = cut_windows(tokenizer, ["the old leaf of a tree"], 6)
    assert given == 1 and all(row[0] == 1 and len(row) <= 6 for row in rows)
    assert [i for row in rows for i in row[1:]] == whole
    bare = train_tokenizer(["the old leaf"], 300, "causal")
    bare.post_processor = tokenizers_without_opening()
    rows, given = cut_windows(bare, ["the old leaf of a tree"], 6)
    whole = bare.encode("the old leaf of a tree").ids
    assert rows[0][0] == whole[0]
    assert [i for row in rows for i in row[1:]] == whole[1:]
    with pytest.raises(ValueError, match="max_length 1 leaves no token to predict"):
        cut_windows(tokenizer, ["a"], 1)


def tokenizers_without_opening():
    from tokenizers import processors

    return processors.TemplateProcessing(single="$A", pair="$A $B:1", special_tokens=[])


def test_perplexity_of_a_model_that_knows_nothing(tokenizer, tmp_path):
    """Uniform logits: every token costs log V, whatever the lengths of the texts."""
    texts = ["the old leaf of a tree", "A new root", "é" * 40]
    file = tmp_path / "texts.txt"
    file.write_text("\n".join(texts))
    vocab = tokenizer.get_vocab_size()
    cfg = dataclasses.replace(CFG, vocab_size=vocab)
    params = jax.tree.map(jnp.zeros_like, compiled.init(jax.random.key(0), cfg))
    scores = perplexity(data=str(file)).evaluate(params, cfg, tokenizer, 16)
    count = sum(len(tokenizer.encode(t, add_special_tokens=False).ids) for t in texts)
    size = sum(len(text.encode()) for text in texts)
    assert (scores["documents"], scores["tokens"]) == (3, count)
    np.testing.assert_allclose(scores["perplexity"], vocab, rtol=1e-5)
    bits = count * np.log2(vocab) / size
    np.testing.assert_allclose(scores["bits_per_byte"], bits, rtol=1e-5)
    np.testing.assert_allclose(scores["byte_perplexity"], 2**bits, rtol=1e-5)
    characters = sum(map(len, texts))
    expected = vocab ** (count / characters)
    np.testing.assert_allclose(scores["character_perplexity"], expected, rtol=1e-5)
    two_sided = dataclasses.replace(cfg, causal=False)
    with pytest.raises(ValueError, match="perplexity needs a causal model"):
        perplexity(data=str(file)).evaluate(params, two_sided, tokenizer, 16)
    short = jax.tree.map(lambda x: x[:9] if len(x) == vocab else x, params)
    with pytest.raises(ValueError, match="token .* of id .* table has 9 rows"):
        perplexity(data=str(file)).evaluate(short, cfg, tokenizer, 16)


def test_perplexity_is_that_of_the_windows_one_by_one(tokenizer, tmp_path, params):
    texts = ["the old leaf of a tree, " * 4, "A new root"]
    (tmp_path / "texts.txt").write_text("\n".join(texts))
    cfg = dataclasses.replace(CFG, vocab_size=300)
    params = compiled.init(jax.random.key(3), cfg)
    scores = perplexity(data=str(tmp_path / "texts.txt")).evaluate(
        params, cfg, tokenizer, 16
    )
    rows, _ = cut_windows(tokenizer, texts, 16)
    run = jax.jit(lambda params, tokens: next_token_loss(params, tokens, cfg)[0])
    total = 0.0
    for ids in rows:
        alone = jnp.zeros((1, 20), jnp.int32).at[0, : len(ids)].set(ids)
        real = (jnp.arange(20) < len(ids))[None].astype(jnp.int32)
        total += float(run(params, Tokens(alone, real, real > 0))) * (len(ids) - 1)
    np.testing.assert_allclose(scores["loss"], total / scores["tokens"], rtol=1e-5)


def test_a_decoder_trains_is_scored_and_loads(tmp_path):
    config = decoder.get_config("tiny")
    config.steps, config.encoder.depth = 1, 2
    del config.evals["pydocs"]
    config.evals.perplexity.documents = 5
    result = loop.train(prepare_run(config, tmp_path), tmp_path)
    found = result.evals["perplexity"]
    assert 1 < found["perplexity"] < 1_000 and found["bits_per_byte"] > 0
    log = [json.loads(x) for x in (tmp_path / "metrics.jsonl").open()]
    assert any("eval/perplexity/perplexity" in row for row in log)
    assert all("perplexity" in row for row in log if "loss" in row)
    loaded = load.load(str(tmp_path))
    assert loaded.config.causal and loaded.tokenizer.token_to_id("[MASK]") is None
    assert (loaded.pool, set(loaded.params)) == (
        "mean",
        {"embed", "layers", "final_norm"},
    )


def test_gritlm_is_both_losses_of_the_same_parameters(params):
    """Contrastive from both sides, and the language modelling of the same rows."""
    two_sided = dataclasses.replace(CFG, causal=False)
    ids = np.random.default_rng(0).integers(4, 50, (4, 16)).astype(np.int32)
    segment = np.repeat([[1] * 8 + [2] * 8], 4, 0).astype(np.int32)
    tokens = Tokens(*map(jnp.asarray, (ids, segment, segment > 0)))
    query = jnp.arange(0, 8, 2, dtype=jnp.int32)
    batch = Batch(tokens, query, query + 1, Labels())
    parts = (
        two_sided,
        BASIC_POOLINGS["mean"],
        SIZE_LOSSES["full_size"](score_loss(infonce)),
    )
    key, tree = jax.random.key(0), {"encoder": params}
    alone = contrastive(*parts).loss(tree, {}, batch, key)[0]
    joint = gritlm(*parts, weight=0.5)
    value, metrics, _ = jax.jit(joint.loss)(tree, {}, batch, key)
    language = next_token_loss(params, tokens, CFG)[0]
    np.testing.assert_allclose(value, alone + 0.5 * language, rtol=1e-5)
    np.testing.assert_allclose(metrics["contrastive"], alone, rtol=1e-5)
    np.testing.assert_allclose(metrics["perplexity"], np.exp(language), rtol=1e-4)
    with pytest.raises(ValueError, match="encoder.causal is True"):
        gritlm(CFG, *parts[1:])


def test_a_mask_of_one_side_matters_to_texts_of_several_tokens(params):
    two_sided = dataclasses.replace(CFG, causal=False)
    real = jnp.arange(5)[None] < jnp.asarray([[1], [5]])  # texts of 1 and of 5 tokens
    ids = jnp.broadcast_to(7 + jnp.arange(5), (2, 5))
    tokens = Tokens(ids, real.astype(jnp.int32), real)
    x, y = (
        compiled.encode(params, tokens, cfg, BASIC_POOLINGS["mean"])
        for cfg in (CFG, two_sided)
    )
    assert (np.abs(x - y).max(1) < 1e-6).tolist() == [True, False]
