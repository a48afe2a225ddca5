"""What of a model is trained: all of it, adapters beside it, or its biases.

Each is name(objective, *, ...) -> Objective. The wrapped one need not know: its loss
gets the whole tree, joined of what is trained and of the base, which stays in the
frozen parameters, so that it has neither gradients nor moments.
"""

import re
from collections.abc import Callable

import jax
import jax.numpy as jnp

from research.models.lora import LORA_LEAVES, full_params, init_lora, partition
from research.sharding import path_name
from research.types import Key, LossOutput, Objective, Params

# What is not the encoder's own, and is trained whatever becomes of it: heads, decoders,
# and a pooling with parameters.
_OUTSIDE = r"^(?!encoder/)|^encoder/pooling/"
_BIASES = r"^encoder/.*/bias$"
# What a frozen base keeps in another type; norms and biases stay float32.
_LARGE = r"/(kernel|embedding)$"


def full(objective: Objective) -> Objective:
    """Everything that the objective trains."""
    return objective


def lora(
    objective: Objective,
    *,
    rank: int = 16,
    alpha: float = 32.0,
    targets: str = ".*",
    dropout: float = 0.0,
    adapters: tuple[str, ...] = ("default",),
    base_dtype: str = "float32",
) -> Objective:
    """Low-rank adapters beside the linear layers of the blocks (Hu et al. 2021).

    Several of them serve a text each: by its role, where they are named 'query' and
    'document', or by its source, where they are named as the config's data is
    (jina-embeddings-v3, Sturua et al. 2024).

    Args:
        objective: what is minimised.
        rank: of each adapter.
        alpha: adapters are multiplied by alpha / rank.
        targets: pattern of the layers that get one: query, key, value, out, gate, up
            and down.
        dropout: rate of the adapters' inputs.
        adapters: their names.
        base_dtype: of the kernels and tables of the base: 'float32' or 'bfloat16'.

    Raises:
        ValueError: another base_dtype, or two adapters of one name.
    """
    _check_dtype(base_dtype)
    if len(set(adapters)) < len(adapters) or not adapters:
        raise ValueError(
            f"tuning.adapters is {', '.join(adapters) or 'empty'}; adapters need names "
            "that differ"
        )

    def adapted(key: Key, params: Params) -> Params:
        return init_lora(
            jax.random.fold_in(key, 2),
            params,
            rank=rank,
            alpha=alpha,
            targets=targets,
            count=len(adapters),
            dropout=dropout,
        )

    trained = rf"{_OUTSIDE}|{LORA_LEAVES}"
    return _partly(objective, trained, base_dtype, adapted)


def bitfit(objective: Objective, *, base_dtype: str = "float32") -> Objective:
    """Biases alone, those of norms too (BitFit, Ben Zaken et al. 2022; SGPT).

    Args:
        objective: what is minimised.
        base_dtype: as of `lora`.

    Raises:
        ValueError: another base_dtype; when initialised, the encoder has no biases.
    """
    _check_dtype(base_dtype)

    def checked(key: Key, params: Params) -> Params:
        del key
        if not partition({"encoder": params}, _BIASES)[0]:
            raise ValueError("tuning is bitfit, but the encoder has no biases to train")
        return params

    return _partly(objective, rf"{_OUTSIDE}|{_BIASES}", base_dtype, checked)


def is_partial(name: str) -> bool:
    """Whether a tuning leaves a part of the model frozen."""
    return name != "full"


def _check_dtype(name: str) -> None:
    if name not in ("float32", "bfloat16"):
        raise ValueError(f"tuning.base_dtype is {name!r}; allowed: float32, bfloat16")


def _partly(
    objective: Objective,
    trained: str,
    base_dtype: str,
    prepared: Callable[[Key, Params], Params],
) -> Objective:
    """The objective, of which the parameters that `trained` is found in are trained.

    The frozen parameters are {"base": the others, "own": the objective's frozen ones}.
    """

    def init(key: Key, encoder_params: Params | None = None) -> tuple[Params, Params]:
        params, own = objective.init(key, encoder_params)
        params = {**params, "encoder": prepared(key, params["encoder"])}
        params, base = partition(params, trained)
        return params, {"base": _kept(base, jnp.dtype(base_dtype)), "own": own}

    def loss(params: Params, frozen: Params, batch, key: Key) -> LossOutput:
        params = full_params(params, frozen)
        output = objective.loss(params, frozen["own"], batch, key)
        if output.frozen is not None:
            output = output._replace(frozen={**frozen, "own": output.frozen})
        return output

    return Objective(init, loss)


def _kept(base: Params, dtype: jnp.dtype) -> Params:
    """The base with its kernels and tables in a type."""

    def cast(path, leaf):
        large = re.search(_LARGE, path_name(path))
        return leaf.astype(dtype) if large else leaf

    return jax.tree_util.tree_map_with_path(cast, base)


TUNING = {"full": full, "lora": lora, "bitfit": bitfit}
