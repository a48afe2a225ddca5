"""Mixtures of experts against NumPy, and embeddings of what their routers say."""

import dataclasses

import compiled
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoders import SIZES, hidden_states

from research import sharding
from research.inference.embedder import Embedder
from research.inference.model import EmbeddingModel
from research.models import encoder
from research.models.config import decoder
from research.models.layers import apply_final_norm
from research.models.moe import Experts
from research.models.pooling import registry
from research.models.pooling.registry import parse_pooling
from research.types import Tokens

SHAPE = {
    "vocab_size": 60,
    "width": 32,
    "depth": 2,
    "num_heads": 2,
    "num_kv_heads": 1,
    "mlp": 24,
}
DENSE = decoder(**SHAPE, max_len=64)
CFG = dataclasses.replace(DENSE, num_experts=4)
IDS = np.random.default_rng(0).integers(4, 60, (3, 7))
LENGTHS = np.array([7, 5, 2])
SEGMENT = (np.arange(7)[None] < LENGTHS[:, None]).astype(np.int32)
TOKENS = Tokens(jnp.int32(IDS), jnp.asarray(SEGMENT), jnp.asarray(SEGMENT > 0))


@pytest.fixture(scope="module")
def params():
    noise = np.random.default_rng(1)
    return jax.tree.map(
        lambda x: jnp.asarray(x + noise.normal(0, 0.2, x.shape), jnp.float32),
        compiled.init(jax.random.key(0), CFG),
    )


def routed(params, cfg=CFG):
    """(states after the final norm [L+1, B, S, D], logits [L+1, B, S, E])."""

    def join(x, router_logits):
        return jnp.concatenate([apply_final_norm(params, x, cfg), router_logits], -1)

    _, joined = encoder.apply(params, TOKENS, cfg, join)
    return np.split(np.asarray(joined), [cfg.width], -1)


def test_a_token_goes_through_its_experts():
    rng = np.random.default_rng(0)
    x, logits = rng.normal(size=(9, 32)), rng.normal(size=(9, 4))
    layer = Experts(CFG)
    shapes = {"gate": (4, 32, 24), "up": (4, 32, 24), "down": (4, 24, 32)}
    p = {name: {"kernel": rng.normal(size=shape)} for name, shape in shapes.items()}
    got = layer.apply(
        {"params": jax.tree.map(jnp.float32, p)},
        jnp.float32(x),
        jnp.float32(logits),
        jax.nn.silu,
    )
    for n in range(9):
        chosen = np.argsort(-logits[n])[:2]
        weight = np.exp(logits[n][chosen])
        weight /= weight.sum()
        expected = np.zeros(32)
        for e, w in zip(chosen, weight, strict=True):
            gate = x[n] @ p["gate"]["kernel"][e]
            inner = gate / (1 + np.exp(-gate)) * (x[n] @ p["up"]["kernel"][e])
            expected += w * inner @ p["down"]["kernel"][e]
        np.testing.assert_allclose(got[n], expected, rtol=1e-4, atol=1e-4)


def test_experts_that_are_alike_are_one_layer(params):
    layers = dict(params["layers"])
    names = ("gate", "up", "down")
    one = {n: layers["experts"][n]["kernel"][:, :1] for n in names}
    layers["experts"] = {n: {"kernel": jnp.repeat(one[n], 4, 1)} for n in names}
    got = compiled.forward({**params, "layers": layers}, TOKENS, CFG).hidden_states
    del layers["experts"], layers["router"]
    layers |= {n: {"kernel": one[n][:, 0]} for n in names}
    dense = compiled.forward({**params, "layers": layers}, TOKENS, DENSE).hidden_states
    np.testing.assert_allclose(got, dense, atol=1e-5)


def test_split_over_devices_it_computes_the_same(params):
    mesh = sharding.make_mesh({"fsdp": 4, "model": 2})
    places = sharding.shardings(params, mesh)
    spread = jax.device_put(params, places)

    def loss(p):
        return jnp.square(encoder.forward(p, TOKENS, CFG).hidden_states[:, 0]).sum()

    one, many = jax.grad(loss)(params), jax.jit(jax.grad(loss))(spread)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, atol=1e-3), one, many)


def test_routers_say_what_those_of_transformers_say(tmp_path):
    import json

    from research.interop.hf.families import read_config
    from research.interop.hf.safetensors import read_safetensors

    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    config = transformers.MixtralConfig(**SIZES, num_local_experts=4)
    model = transformers.MixtralModel(config).eval()
    model.save_pretrained(tmp_path)
    cfg = read_config(json.loads((tmp_path / "config.json").read_text()))
    params = read_safetensors(tmp_path, cfg)
    states, logits = routed(params, cfg)
    with torch.no_grad():
        found = model(torch.tensor(IDS[:1]), output_router_logits=True)
    for ours, theirs in zip(logits[1:], found.router_logits, strict=True):
        np.testing.assert_allclose(ours[0], theirs, atol=1e-5)
    texts = [IDS[i, :n].tolist() for i, n in enumerate(LENGTHS)]
    last = np.stack([x[-1][-1] for x in hidden_states(model, texts, "left")])
    rows = np.stack([states[-1][i, n - 1] for i, n in enumerate(LENGTHS)])
    np.testing.assert_allclose(rows, last, atol=1e-4)


@pytest.mark.parametrize("scores", ["softmax", "logits"])
def test_routing_weights_of_the_last_token(params, scores):
    text = f"moee(include_state=False, scores='{scores}')"
    got = compiled.encode(params, TOKENS, CFG, parse_pooling(text))
    assert got.shape == (3, 8) == (3, registry.pooled_width(text, CFG))
    _, logits = routed(params)
    for i, n in enumerate(LENGTHS):
        z = logits[1:, i, n - 1]
        if scores == "softmax":
            z = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
        np.testing.assert_allclose(got[i], z.reshape(-1), atol=1e-5)
    if scores == "softmax":  # each block's weights sum to 1
        np.testing.assert_allclose(got.sum(1), CFG.depth, rtol=1e-5)


def test_both_is_the_weighted_sum_of_cosines(params):
    got = np.asarray(
        compiled.encode(params, TOKENS, CFG, parse_pooling("moee(weight=0.5)"))
    )
    assert got.shape == (3, 32 + 8)
    state = np.asarray(compiled.encode(params, TOKENS, CFG, parse_pooling("last")))
    weights = np.asarray(
        compiled.encode(params, TOKENS, CFG, parse_pooling("moee(include_state=False)"))
    )

    def cosines(x):
        x = x / np.linalg.norm(x, axis=1, keepdims=True)
        return x @ x.T

    expected = (cosines(state) + 0.5 * cosines(weights)) / 1.5
    np.testing.assert_allclose(cosines(got), expected, atol=1e-5)


def test_a_packed_text_is_routed_as_if_alone(params):
    ids = jnp.concatenate([TOKENS.token_ids[0], TOKENS.token_ids[1, :5]])[None]
    segment = jnp.int32([[1] * 7 + [2] * 5])
    packed = Tokens(ids, segment, segment > 0)
    got = compiled.encode(params, packed, CFG, parse_pooling("moee"), max_segments=2)
    alone = compiled.encode(params, TOKENS, CFG, parse_pooling("moee"))
    np.testing.assert_allclose(got, alone[:2], atol=1e-5)


def test_errors(params):
    for text, message in (
        ("moee(include_state=1)", "include_state is 1; it takes True or False"),
        ("moee(scores='top')", "pool.scores is 'top'; allowed: softmax, logits"),
        ("moee(weight=-1)", "moee's weight is -1; it should be at least 0"),
    ):
        with pytest.raises(ValueError, match=message):
            parse_pooling(text)
    dense = compiled.init(jax.random.key(0), DENSE)
    with pytest.raises(ValueError, match="reads the routers of a mixture of experts"):
        Embedder(EmbeddingModel(dense, DENSE, None, "moee", 8, {}, True))
    with pytest.raises(ValueError, match=r"a token goes through 1 \.\.\. 4 of them"):
        dataclasses.replace(CFG, experts_per_token=5)
    with pytest.raises(ValueError, match="gated False; 4 experts are gated"):
        dataclasses.replace(CFG, gated=False)
