"""Which parameters are trained: all of them, LoRA adapters, or biases (BitFit).

A tuning maps an Objective to another. The wrapped one's loss gets the full tree of
parameters, combined from the trained ones and the base, which stays in the frozen
parameters, so that it has neither gradients nor moments.
"""

import re
from collections.abc import Callable

import jax
import jax.numpy as jnp

from research.models.lora import LORA_LEAVES, full_params, init_lora, partition
from research.sharding import path_name
from research.types import Key, LossOutput, Objective, Params

# Parameters that are trained with every tuning: heads, decoders, and a pooling's.
_OUTSIDE = r"^(?!encoder/)|^encoder/pooling/"
_BIASES = r"^encoder/.*/bias$"
# Parameters of a frozen base that are kept in `base_dtype`; others stay float32.
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
    """Low-rank adapters beside the linear layers of the blocks (LoRA, Hu et al. 2021).

    With several adapters, each text goes through one: by its role, where adapters are
    named "query" and "document", or by its source, where they are named as the config's
    data sources are (jina-embeddings-v3, Sturua et al. 2024).

    Args:
        objective: What is minimized.
        rank: Rank of each adapter.
        alpha: Adapters are multiplied by alpha / rank.
        targets: Pattern of the layers that get adapters: query, key, value, out, gate,
            up and down.
        dropout: Dropout rate of the adapters' inputs.
        adapters: The adapters' names.
        base_dtype: Type of the base's kernels and tables: "float32" or "bfloat16".

    Raises:
        ValueError: The base_dtype is unknown, or two adapters have one name.
    """
    _check_dtype(base_dtype)
    if len(set(adapters)) < len(adapters) or not adapters:
        raise ValueError(
            f"tuning.adapters is {', '.join(adapters) or 'empty'}; adapters need names "
            "that differ"
        )

    def add_adapters(key: Key, params: Params) -> Params:
        return init_lora(
            jax.random.fold_in(key, 2),
            params,
            rank=rank,
            alpha=alpha,
            targets=targets,
            count=len(adapters),
            dropout=dropout,
        )

    # heads, decoders and poolings are trained in full
    trained = rf"{_OUTSIDE}|{LORA_LEAVES}"
    return _train_partly(objective, trained, base_dtype, add_adapters)


def bitfit(objective: Objective, *, base_dtype: str = "float32") -> Objective:
    """Trains biases only, those of norms too (BitFit, Ben Zaken et al. 2022; SGPT).

    Args:
        objective: What is minimized.
        base_dtype: As in `lora`.

    Raises:
        ValueError: The base_dtype is unknown; when initialized, the encoder has no
            biases.
    """
    _check_dtype(base_dtype)

    def check_biases(key: Key, params: Params) -> Params:
        del key
        if not partition({"encoder": params}, _BIASES)[0]:
            raise ValueError("tuning is bitfit, but the encoder has no biases to train")
        return params

    trained = rf"{_OUTSIDE}|{_BIASES}"
    return _train_partly(objective, trained, base_dtype, check_biases)


def is_partial(name: str) -> bool:
    """Whether a tuning leaves a part of the model frozen."""
    return name != "full"


def _check_dtype(name: str) -> None:
    if name not in ("float32", "bfloat16"):
        raise ValueError(f"tuning.base_dtype is {name!r}; allowed: float32, bfloat16")


def _train_partly(
    objective: Objective,
    trained: str,
    base_dtype: str,
    prepare_encoder: Callable[[Key, Params], Params],
) -> Objective:
    """Trains some parameters of an objective.

    Args:
        objective: What is minimized.
        trained: Pattern of the paths of the parameters that are trained.
        base_dtype: Type of the other kernels and tables.
        prepare_encoder: (key, encoder's parameters) -> those to train on.

    Returns:
        An Objective whose frozen parameters are {"base": those not trained, "own": the
        wrapped objective's frozen ones}.
    """

    def init(key: Key, encoder_params: Params | None = None) -> tuple[Params, Params]:
        params, objective_frozen = objective.init(key, encoder_params)
        params = {**params, "encoder": prepare_encoder(key, params["encoder"])}
        params, base = partition(params, trained)
        return params, {
            "base": _cast_base(base, jnp.dtype(base_dtype)),
            "own": objective_frozen,
        }

    def loss(params: Params, frozen: Params, batch, key: Key) -> LossOutput:
        params = full_params(params, frozen)
        output = objective.loss(params, frozen["own"], batch, key)
        if output.frozen is not None:
            output = output._replace(frozen={**frozen, "own": output.frozen})
        return output

    return Objective(init, loss)


def _cast_base(base: Params, dtype: jnp.dtype) -> Params:
    """Casts the base's kernels and tables."""

    def cast(path, leaf):
        large = re.search(_LARGE, path_name(path))
        return leaf.astype(dtype) if large else leaf

    return jax.tree_util.tree_map_with_path(cast, base)


TUNING = {"full": full, "lora": lora, "bitfit": bitfit}
