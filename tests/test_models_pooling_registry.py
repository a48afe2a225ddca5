"""Poolings with parameters: their properties, and their way through a workdir."""

from math import erf

import compiled
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import learned_poolings
from research.config_sections import format_call, section
from research.experiment.workdir import prepare_run
from research.inference.embedder import Embedder
from research.interop import load
from research.interop.sentence_transformers.write import export
from research.losses.contrastive import infonce
from research.losses.matryoshka import SIZE_LOSSES
from research.losses.registry import score_loss
from research.models import encoder
from research.models import heads as models_heads
from research.models.attention.masks import pooling_masks
from research.models.config import EncoderConfig, modern
from research.models.pooling import lexical, registry
from research.models.pooling.registry import BASIC_POOLINGS, parse_pooling
from research.objectives.contrastive import contrastive
from research.text import chunking
from research.train import loop
from research.types import Tokens

pytestmark = pytest.mark.usefixtures("one_device")
SHAPE = {
    "vocab_size": 60,
    "width": 32,
    "depth": 2,
    "num_heads": 2,
    "mlp": 48,
    "max_len": 32,
}
CFG = modern(**SHAPE)
TEXTS = {
    "latent_attention": "latent_attention(latents=6, heads=2, head_dim=8, mult=2)",
    "layer_attention": "layer_attention(latents=5, heads=2, mult=2)",
    "lexicon": "lexicon(clusters=12)",
    "dupmae": "dupmae(dim=8, top=5)",
}
SEGMENT = np.array([[1] * 6 + [2] * 5 + [0] * 3], np.int32)
MASK = pooling_masks(jnp.asarray(SEGMENT), jnp.asarray(SEGMENT > 0), 3)


def add_noise(tree, seed=0):
    noise = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: jnp.asarray(x + noise.normal(0, 0.2, x.shape).astype("f4")), tree
    )


@pytest.fixture(scope="module")
def params():
    return add_noise(compiled.init(jax.random.key(0), CFG))


def make_pooling(name, params):
    """(the pooling, its parameters with noise)."""
    pooling = parse_pooling(TEXTS[name])
    init = jax.jit(lambda key, params: pooling.init(key, CFG, params))
    return pooling, add_noise(init(jax.random.key(1), params), 1)


@pytest.fixture(scope="module")
def states():
    """[1, 14, 32]"""
    return jax.random.normal(jax.random.key(2), (1, 14, 32))


def jit_pool(pooling, params=None):
    """(the pooling's parameters, states, mask) -> vectors."""
    return jax.jit(
        lambda p, x, mask: pooling.pool({**(params or {}), "pooling": p}, CFG, x, mask)
    )


def test_the_published_nv_embed_has_740_million_parameters():
    cfg = EncoderConfig(vocab_size=8, width=4_096, depth=1, num_heads=32, mlp=8)
    pooling = parse_pooling("latent_attention")
    shapes = jax.eval_shape(lambda key: pooling.init(key, cfg, {}), jax.random.key(0))
    kernels = 4_096 * (8 + 16 + 8 + 8 + 4) * 4_096
    others = 512 * 4_096 + 32_768 + 4_096 + 3 * 2 * 4_096
    found = sum(x.size for x in jax.tree.leaves(shapes))
    assert found == kernels + others and round(found / 1e9, 3) == 0.740


def test_the_published_layer_attention_has_1_27_billion():
    cfg = EncoderConfig(vocab_size=8, width=4_096, depth=32, num_heads=32, mlp=8)
    pooling = parse_pooling("layer_attention")
    shapes = jax.eval_shape(lambda key: pooling.init(key, cfg, {}), jax.random.key(0))
    assert shapes["layers"].shape == (32, 4_096)
    assert shapes["latents"].shape == (768, 4_096)
    names = ("query", "key_value", "out")
    attention = sum(shapes[name]["kernel"].size for name in names)
    assert attention == 4 * 4_096 * 65_536  # 1.07 billion
    feed = sum(x.size for n in ("up", "down") for x in jax.tree.leaves(shapes[n]))
    assert round(feed / 1e9, 2) == 0.20


def attention(p, x, z, heads):
    """The definition, one token and one head at a time, in float64."""
    p = jax.tree.map(lambda w: np.asarray(w, np.float64), p)

    def normed(name, y):
        y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-5)
        return y * p[name]["scale"] + p[name]["bias"]

    q = normed("query_norm", x) @ p["query"]["kernel"]
    k, v = np.split(normed("memory_norm", z) @ p["key_value"]["kernel"], 2, -1)
    size = q.shape[-1] // heads
    out = np.zeros_like(q)
    for n in range(len(x)):
        for h in range(heads):
            part = slice(h * size, (h + 1) * size)
            s = k[:, part] @ q[n, part] / np.sqrt(size)
            w = np.exp(s - s.max())
            out[n, part] = (w / w.sum()) @ v[:, part]
    y = x + out @ p["out"]["kernel"]
    u = normed("mlp_norm", y) @ p["up"]["kernel"] + p["up"]["bias"]
    value, gate = np.split(u, 2, -1)

    gelu = gate * 0.5 * (1 + np.vectorize(erf)(gate / np.sqrt(2)))
    return y + (value * gelu) @ p["down"]["kernel"] + p["down"]["bias"]


def test_latent_attention_is_its_definition(params, states):
    pooling, p = make_pooling("latent_attention", params)
    got = jit_pool(pooling)(p, states, MASK)
    x = np.asarray(states[0], np.float64)
    y = attention(p, x, np.asarray(p["latents"], np.float64), 2)
    np.testing.assert_allclose(got[0, 0], y[:6].mean(0), atol=1e-5)
    np.testing.assert_allclose(got[0, 1], y[6:11].mean(0), atol=1e-5)
    assert not got[0, 2].any()


def test_latent_attention_is_a_map_of_tokens_by_a_set_of_latents(params, states):
    pooling, p = make_pooling("latent_attention", params)
    pool = jit_pool(pooling)
    expected = pool(p, states, MASK)
    order = np.random.default_rng(0).permutation(6)
    shuffled = {**p, "latents": p["latents"][order]}
    np.testing.assert_allclose(pool(shuffled, states, MASK), expected, atol=1e-5)
    permuted_tokens = jnp.concatenate([states[:, order], states[:, 6:]], 1)
    np.testing.assert_allclose(pool(p, permuted_tokens, MASK), expected, atol=1e-5)
    padding = states.at[:, 11:].set(99.0)
    np.testing.assert_array_equal(pool(p, padding, MASK), expected)
    fewer = {**p, "latents": p["latents"].at[0].multiply(-3.0)}
    assert np.abs(pool(fewer, states, MASK) - expected).max() > 1e-3


def test_latent_attention_that_adds_nothing_is_the_mean(params, states):
    pooling, p = make_pooling("latent_attention", params)
    zero = {name: jax.tree.map(jnp.zeros_like, p[name]) for name in ("out", "down")}
    got = jit_pool(pooling)({**p, **zero}, states, MASK)
    np.testing.assert_allclose(got, BASIC_POOLINGS["mean"](states, MASK), atol=1e-6)


def test_layers_are_a_set_with_their_embeddings(params):
    pooling, p = make_pooling("layer_attention", params)
    vectors = jax.random.normal(jax.random.key(3), (2, 1, 3, 32))
    pool = jit_pool(pooling)
    got = pool(p, vectors, MASK)
    changed = {**p, "layers": p["layers"][::-1]}
    np.testing.assert_allclose(pool(changed, vectors[::-1], MASK), got, atol=1e-5)
    assert np.abs(pool(changed, vectors, MASK) - got).max() > 1e-3
    z = np.asarray(p["latents"], np.float64)
    x = np.asarray(vectors[:, 0, 0] + p["layers"], np.float64)
    y = attention(p, z, x, 2).mean(0)
    np.testing.assert_allclose(got[0, 0], y, atol=1e-5)
    assert not got[0, 2].any()  # a text that there is not
    alone = pool(p, vectors[:, :, :1], MASK[:, :1])
    np.testing.assert_allclose(alone[0, 0], got[0, 0], atol=1e-5)
    assert pool(p, vectors[:1], MASK).shape == (1, 3, 32)  # one layer is enough


def test_layer_attention_reads_every_block(params):
    pooling, p = make_pooling("layer_attention", params)
    tokens = Tokens(jnp.arange(14)[None] % 60, jnp.asarray(SEGMENT), SEGMENT > 0)
    with_pooling = {**params, "pooling": p}
    got = compiled.encode(with_pooling, tokens, CFG, pooling, max_segments=3)
    all_layers = compiled.forward(params, tokens, CFG, every_layer=True).layers
    vectors = jnp.stack([BASIC_POOLINGS["last"](x, MASK) for x in all_layers[1:]])
    np.testing.assert_allclose(got, jit_pool(pooling)(p, vectors, MASK)[0], atol=1e-5)
    with pytest.raises(ValueError, match="one vector of all layers"):
        encoder.encode(
            with_pooling, tokens, CFG, pooling, max_segments=3, every_layer=True
        )


def test_a_lexicon_is_its_definition(params, states):
    pooling, p = make_pooling("lexicon", params)
    got = np.asarray(jit_pool(pooling)(p, states, MASK))
    logits = np.asarray(states[0] @ p["centroids"].T)
    each = np.log1p(np.maximum(logits, 0))
    np.testing.assert_allclose(got[0, 0], each[:6].max(0), atol=1e-5)
    np.testing.assert_allclose(got[0, 1], each[6:11].max(0), atol=1e-5)
    assert (got >= 0).all() and (got > 0).any() and not got[0, 2].any()
    np.testing.assert_array_equal(
        jit_pool(pooling)(p, states.at[:, 11:].set(99.0), MASK), got
    )


def test_a_lexicon_clusters_the_output_layer_where_it_is_not_tied(params, key):
    """LENS clusters lm_head (Yibin-Lei/LENS), which the trained model does not keep."""
    table = np.asarray(add_noise(params, 1)["embed"]["token"]["embedding"])
    untied = {**params, "lm_head": {"kernel": jnp.asarray(table)}}
    pool = parse_pooling("lexicon(clusters=12)")
    got = registry.add_pooling_params(key, untied, CFG, pool)
    np.testing.assert_array_equal(
        got["pooling"]["centroids"], lexical.cluster_centroids(table, 12, 0)
    )
    assert set(got) == {*params, "pooling"}


def test_the_bag_of_words_is_its_definition(params, states):
    pooling, p = make_pooling("dupmae", params)
    got = np.asarray(jit_pool(pooling, params)(p, states, MASK))
    np.testing.assert_allclose(
        got[0, :2, :8], states[0, [0, 6]] @ p["linear"]["kernel"], atol=1e-5
    )
    y = models_heads.apply_mlm_head(p["head"], states, CFG)[0]
    table = params["embed"]["token"]["embedding"]
    logits = np.asarray(y @ table.T) + np.asarray(p["head"]["bias"])
    for m, part in enumerate((slice(1, 6), slice(7, 11))):  # not the first token
        most = logits[part].max(0)
        largest = np.sort(most)[-5:]
        expected = np.where(most >= largest[0], most, 0)
        np.testing.assert_allclose(got[0, m, 8:], expected, atol=1e-5)
    assert not got[0, 2].any()


def test_the_bag_of_words_takes_the_head_of_the_pre_training(params):
    pooling = parse_pooling(TEXTS["dupmae"])
    key = jax.random.key(5)
    head = models_heads.init_mlm_head(key, CFG)
    objective = contrastive(CFG, pooling, SIZE_LOSSES["full_size"](score_loss(infonce)))
    start = objective.init(key, encoder_params={**params, "head": head})[0]["encoder"]
    assert "head" not in start and start["pooling"]["head"] is head
    random = objective.init(key, encoder_params=params)[0]["encoder"]["pooling"]["head"]
    assert (random["transform"]["kernel"] != head["transform"]["kernel"]).any()
    plain = contrastive(
        CFG, BASIC_POOLINGS["cls"], SIZE_LOSSES["full_size"](score_loss(infonce))
    )
    assert (
        "head"
        not in plain.init(key, encoder_params={**params, "head": head})[0]["encoder"]
    )
    with pytest.raises(ValueError, match="pool.top is 61; allowed: 1 ... 60"):
        parse_pooling("dupmae(top=61)").init(key, CFG, params)


def test_centroids_are_means_and_a_cluster_of_one_is_its_token(params):
    table = np.asarray(params["embed"]["token"]["embedding"])
    table = np.concatenate([table[:30] * 0.01, table[30:33] + 9 * np.eye(3, 32)])
    found = np.asarray(lexical.cluster_centroids(jnp.asarray(table), 4, 0))
    distance = np.linalg.norm(table[:, None] - found[None], axis=2)
    label = distance.argmin(1)
    assert sorted(np.bincount(label, minlength=4)) == [1, 1, 1, 30]
    for cluster in range(4):
        expected = table[label == cluster].mean(0)
        np.testing.assert_allclose(found[cluster], expected, atol=1e-6)
    x = jax.random.normal(jax.random.key(0), (5, 32))
    for token in (30, 31, 32):  # the logit of a centroid is the token's own
        np.testing.assert_array_equal(x @ found[label[token]], x @ table[token])
    again = jax.jit(lambda t: lexical.cluster_centroids(t, 4, 0))(jnp.asarray(table))
    np.testing.assert_array_equal(again, found)


@pytest.mark.parametrize("name", TEXTS)
def test_packed_texts_are_pooled_as_if_alone(name, params):
    pooling, p = make_pooling(name, params)
    with_pooling = {**params, "pooling": p}
    ids = jax.random.randint(jax.random.key(4), (1, 14), 0, 60)
    tokens = Tokens(ids, jnp.asarray(SEGMENT), jnp.asarray(SEGMENT > 0))
    ones = jnp.ones((1, 5), jnp.int32)
    alone = Tokens(ids[:, 6:11], ones, ones > 0)
    packed = compiled.encode(with_pooling, tokens, CFG, pooling, max_segments=3)
    single = compiled.encode(with_pooling, alone, CFG, pooling)
    np.testing.assert_allclose(packed[1], single[0], atol=1e-5)
    assert packed.shape == (3, registry.pooled_width(TEXTS[name], CFG))


def test_poolings_are_written_and_read():
    part = section(registry.POOLINGS, "layer_attention", latents=3, layer_vector="mean")
    text = format_call(part)
    assert text == (
        "layer_attention(head_dim=0, heads=32, latents=3, layer_vector='mean', mult=4)"
    )
    assert parse_pooling(text).pool_layer is BASIC_POOLINGS["mean"]
    assert format_call(section(registry.POOLINGS, "mean")) == "mean"
    assert parse_pooling("mean") is BASIC_POOLINGS["mean"]
    for wrong, message in (
        ("sum", "unknown pooling 'sum'; known: mean"),
        ("mean(heads=3)", "has arguments; mean takes none"),
        ("mean:heads=3", "'mean:heads=3' is no call"),
        ("moee(weight='1')", "moee's weight is '1'; it takes a number"),
        ("lexicon(k=3)", "lexicon has no argument k; it has clusters, seed"),
        ("layer_attention(layer_vector='cls')", "layer_vector is 'cls'; allowed: last"),
    ):
        with pytest.raises(ValueError, match=message):
            parse_pooling(wrong)


def test_a_run_takes_over_the_pooling_or_drops_it(params):
    nested = SIZE_LOSSES["full_size"](score_loss(infonce))
    pooling = parse_pooling(TEXTS["latent_attention"])
    objective = contrastive(CFG, pooling, nested)
    fresh = objective.init(jax.random.key(0))[0]["encoder"]
    assert fresh["pooling"]["latents"].shape == (6, 32)
    continued = objective.init(jax.random.key(1), encoder_params=fresh)[0]["encoder"]
    assert continued["pooling"] is fresh["pooling"]
    plain = contrastive(CFG, BASIC_POOLINGS["mean"], nested).init(
        jax.random.key(1), encoder_params=fresh
    )
    assert "pooling" not in plain[0]["encoder"]
    changed = contrastive(
        CFG, parse_pooling("latent_attention(latents=7, heads=2)"), nested
    )
    with pytest.raises(ValueError, match=r"latents \[7, 32\].*latents \[6, 32\]"):
        changed.init(jax.random.key(1), encoder_params=fresh)
    ones = jnp.ones((1, 4), jnp.int32)
    tokens = Tokens(ones, ones, ones > 0)
    with pytest.raises(ValueError, match="the model was not trained with it"):
        encoder.encode(params, tokens, CFG, pooling)


@pytest.mark.parametrize(
    "name", ["latent_attention", "layer_attention", "lexicon", "dupmae"]
)
def test_a_workdir_remembers_its_pooling(name, tmp_path, tmp_path_factory):
    config = learned_poolings.get_config(f"tiny,pool={name}")
    config.encoder.depth, config.steps, config.evals = 2, 1, {}
    cache = tmp_path_factory.getbasetemp() / "tokens"
    parts = prepare_run(config, tmp_path / "run", cache=cache)
    result = loop.train(parts, tmp_path / "run")
    model = load.load(str(tmp_path / "run"))
    assert model.pool == format_call(config.pool)
    assert model.width == {"lexicon": 16, "dupmae": 16 + 512}.get(name, 48)
    embed = Embedder(model)
    texts = ["a list of names", "open a file"]
    got = embed(texts, "document")
    assert got.shape == (2, model.width)
    if name != "dupmae":  # trained by dot products
        np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1, rtol=1e-5)
    trained = parts.make_embedder(result.state.params, {})(texts, "document")
    np.testing.assert_allclose(got, trained, atol=1e-6)
    with pytest.raises(ValueError, match=f"no module that pools by {name}"):
        export(model, tmp_path / "out")
    with pytest.raises(ValueError, match="late pools token states by itself"):
        Embedder(model, chunk=chunking.parse_chunking("late(8)"))
    if name == "latent_attention":
        vectors = Embedder(model, depths=[1, 2])(texts, "document")
        np.testing.assert_allclose(vectors[:, 1], got, atol=1e-5)
