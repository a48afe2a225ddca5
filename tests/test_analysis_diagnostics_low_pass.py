import numpy as np
import pytest
import scipy

from research.analysis.diagnostics.low_pass import (
    filter_gain,
    high_frequency_share,
    measure_low_pass,
    subtract_mean_token,
)


def cloud():
    return np.random.default_rng(0).normal(size=(200, 8)) * np.arange(1, 9) + 0.5


def random_attention(size, seed=13):
    logits = np.random.default_rng(seed).normal(size=(size, size))
    return scipy.special.softmax(logits, 1)


def test_gain_and_shares_of_a_known_signal():
    x, weights = cloud()[:6], random_attention(6)
    norm = np.linalg.norm
    assert filter_gain(weights) == pytest.approx(0.517195, abs=1e-6)
    assert norm(subtract_mean_token(x)) == pytest.approx(30.865973, abs=1e-6)
    assert norm(subtract_mean_token(weights @ x)) == pytest.approx(12.847360, abs=1e-6)
    assert high_frequency_share(x) == pytest.approx(0.771930, abs=1e-6)


def test_the_gain_of_uniform_attention_is_0_and_of_the_identity_1():
    assert filter_gain(np.full((5, 5), 0.2)) == pytest.approx(0, abs=1e-7)
    assert filter_gain(np.eye(5)) == pytest.approx(1)
    x = cloud()
    once = subtract_mean_token(x)
    np.testing.assert_allclose(subtract_mean_token(once), once, atol=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_the_gain_bounds_what_attention_keeps(seed):
    rng = np.random.default_rng(seed)
    x, kernel = rng.normal(size=(12, 8)) + 1, rng.normal(size=(8, 5))
    weights = random_attention(12, seed)
    output = np.linalg.norm(subtract_mean_token(weights @ x @ kernel))
    bound = filter_gain(weights) * np.linalg.norm(kernel, 2)
    assert output <= bound * np.linalg.norm(subtract_mean_token(x))


def test_a_lower_temperature_keeps_more_differences():
    from tiny_models import make_model

    from research.models.positions.methods import extend_context
    from research.models.positions.query_scale import TempScale

    model = make_model()
    token_ids = np.random.default_rng(0).integers(5, 60, (3, 12), dtype=np.int32)
    gains = []
    for tau in (1.0, 0.3):
        scaled = extend_context(model.params, model.config, [TempScale(tau=tau)])
        record = measure_low_pass(*scaled, token_ids)
        assert len(record["states"]) == 1 + model.config.depth
        assert len(record["output"]) == len(record["gain"]) == model.config.depth
        assert 0 < min(record["output"]) < max(record["residual"]) < 1
        gains.append(np.mean(record["gain"]))
    assert gains[1] > gains[0]
