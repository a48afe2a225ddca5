import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from research.train.optimizers import OPTIMIZERS, adamw, learning_rate_schedule


def params():
    return {
        "encoder": {
            "embed": {"token": {"embedding": jnp.full((4, 2), 0.5)}},
            "layers": {
                "up": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)},
                "mlp_norm": {"scale": jnp.ones(3)},
            },
        }
    }


def gradients(step):
    random = np.random.default_rng(step)
    return jax.tree.map(
        lambda x: jnp.asarray(random.normal(size=x.shape), jnp.float32), params()
    )


def train(tx, steps=3):
    trained = params()
    state = jax.jit(tx.init)(trained)

    @jax.jit
    def apply_step(trained, state, gradient):
        updates, state = tx.update(gradient, state, trained)
        return optax.apply_updates(trained, updates), state

    for step in range(steps):
        trained, state = apply_step(trained, state, gradients(step))
    return trained, state


def numpy_adamw(steps, total, rate, decay, clip, betas=(0.9, 0.999), eps=1e-8):
    """Loshchilov & Hutter 2019, algorithm 2, with a linear fall to 0."""
    path = jax.tree_util.tree_leaves_with_path(params())
    decayed = [p[-1].key not in ("bias", "scale") for p, _ in path]
    x = [np.asarray(leaf, np.float64) for _, leaf in path]
    m, v = [0 * a for a in x], [0 * a for a in x]
    for step in range(steps):
        g = [np.asarray(a, np.float64) for a in jax.tree.leaves(gradients(step))]
        norm = np.sqrt(sum((a**2).sum() for a in g))
        g = [a * min(1, clip / norm) for a in g]
        lr = rate * (1 - step / total)
        for i, a in enumerate(g):
            m[i] = betas[0] * m[i] + (1 - betas[0]) * a
            v[i] = betas[1] * v[i] + (1 - betas[1]) * a**2
            move = m[i] / (1 - betas[0] ** (step + 1))
            move = move / (np.sqrt(v[i] / (1 - betas[1] ** (step + 1))) + eps)
            x[i] = x[i] - lr * (move + decay * x[i] * decayed[i])
    return x


def test_every_optimizer_is_tested():
    assert set(OPTIMIZERS) == {"adamw"}


def test_adamw_is_the_published_one_without_decay_on_biases_and_norms():
    tx = adamw(10, learning_rate=0.1, weight_decay=0.3, clip_norm=1.0)
    trained, _ = train(tx)
    expected = numpy_adamw(3, 10, 0.1, 0.3, 1.0)
    for ours, theirs in zip(jax.tree.leaves(trained), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_frozen_parameters_stay_and_have_no_moments():
    trained, state = train(adamw(10, learning_rate=0.1, freeze="embed/"))
    start = params()["encoder"]
    np.testing.assert_array_equal(
        trained["encoder"]["embed"]["token"]["embedding"],
        start["embed"]["token"]["embedding"],
    )
    kernel = trained["encoder"]["layers"]["up"]["kernel"]
    assert (kernel != start["layers"]["up"]["kernel"]).all()
    assert (4, 2) not in [leaf.shape for leaf in jax.tree.leaves(state)]


def test_frozen_gradients_do_not_count_in_clipping():
    frozen, _ = train(adamw(10, learning_rate=0.1, freeze="embed/"), 1)
    alone = params()["encoder"]["layers"]
    tx = adamw(10, learning_rate=0.1)
    updates, _ = tx.update(gradients(0)["encoder"]["layers"], tx.init(alone), alone)
    expected = optax.apply_updates(alone, updates)
    chex.assert_trees_all_close(frozen["encoder"]["layers"], expected, rtol=1e-6)


def test_multipliers_scale_the_learning_rate():
    plain, _ = train(adamw(10, learning_rate=0.1), 1)
    tx = adamw(10, learning_rate=0.1, multipliers=(("embed", 0.5), ("bias$", 0.0)))
    scaled, _ = train(tx, 1)
    moved = jax.tree.map(lambda new, old: new - old, plain, params())["encoder"]
    now = jax.tree.map(lambda new, old: new - old, scaled, params())["encoder"]
    np.testing.assert_allclose(
        now["embed"]["token"]["embedding"],
        moved["embed"]["token"]["embedding"] * 0.5,
        rtol=1e-5,
    )
    assert not now["layers"]["up"]["bias"].any()
    np.testing.assert_allclose(
        now["layers"]["up"]["kernel"], moved["layers"]["up"]["kernel"], rtol=1e-6
    )


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"freeze": "nothing"}, "matches no parameter"),
        ({"freeze": "."}, "matches every parameter"),
        ({"multipliers": (("nothing", 2.0),)}, "'nothing' matches no parameter"),
        ({"freeze_rows": (("nothing", 0, 1, 1),)}, "'nothing' matches no parameter"),
    ],
)
def test_patterns_that_miss_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        adamw(10, **arguments).init(params())


def test_frozen_rows_stay_and_the_others_do_not_see_them():
    rows = (("token/embedding", 1, 4, 2),)
    given = {"learning_rate": 0.1, "weight_decay": 0.5, "freeze": "layers/"}
    trained, _ = train(adamw(10, freeze_rows=rows, **given))
    before, after = (
        np.asarray(tree["encoder"]["embed"]["token"]["embedding"])
        for tree in (params(), trained)
    )
    np.testing.assert_array_equal(after[1::2], before[1::2])
    assert (after[::2] != before[::2]).all()
    # Nor does their gradient count in the norm that is clipped.
    alone = {"x": jnp.full((2, 2), 0.5)}
    tx, small = adamw(10, **given | {"freeze": ""}), alone
    state = tx.init(small)
    for step in range(3):
        gradient = gradients(step)["encoder"]["embed"]["token"]["embedding"][::2]
        updates, state = tx.update({"x": gradient}, state, small)
        small = optax.apply_updates(small, updates)
    np.testing.assert_allclose(after[::2], small["x"], rtol=1e-6)


def test_bad_schedules_are_refused():
    with pytest.raises(ValueError, match="linear, cosine, constant"):
        adamw(10, schedule="step")
    with pytest.raises(ValueError, match="warmup 20"):
        adamw(10, warmup=20)


@pytest.mark.parametrize("warmup", [0.2, 2])
def test_schedules(warmup):
    linear, cosine, constant = (
        [float(learning_rate_schedule(10, 1.0, warmup, name)(step)) for step in steps]
        for name, steps in [
            ("linear", (0, 1, 2, 6, 10)),
            ("cosine", (0, 1, 2, 6, 10)),
            ("constant", (0, 1, 2, 6, 10)),
        ]
    )
    np.testing.assert_allclose(linear, [0, 0.5, 1, 0.5, 0], atol=1e-6)
    np.testing.assert_allclose(cosine, [0, 0.5, 1, 0.5, 0], atol=1e-6)
    np.testing.assert_allclose(constant, [0, 0.5, 1, 1, 1], atol=1e-6)
