"""Which parameters are trained: all, LoRA adapters, biases (BitFit), or heads alone.

A tuning maps an Objective to another Objective. The base parameters become frozen
parameters, without gradients and optimizer moments; the loss of the wrapped objective
receives the full tree, combined from trained and base parameters.
"""

import re
from collections.abc import Callable

import jax
import jax.numpy as jnp

from research.models.lora import LORA_LEAVES, full_params, init_lora, partition
from research.sharding import path_name
from research.types import Key, LossOutput, Objective, Params

# Parameters that every tuning trains: heads, decoders, and those of a pooling.
_OUTSIDE = r"^(?!encoder/)|^encoder/pooling/"
_BIASES = r"^encoder/.*/bias$"
# Parameters of a frozen base that are stored in `base_dtype`; others stay float32.
_LARGE = r"/(kernel|embedding)$"


def full(objective: Objective) -> Objective:
    """Trains all parameters: returns the objective unchanged."""
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
    """Trains low-rank adapters of the blocks' linear layers (LoRA, Hu et al. 2021).

    With several adapters, one is applied to each text: by its role, if the adapters are
    named "query" and "document", or by its data source, if they are named like the
    config's sources (jina-embeddings-v3, Sturua et al. 2024).

    Args:
        objective: The objective to wrap.
        rank: Rank of each adapter.
        alpha: Numerator of the adapters' factor alpha / rank.
        targets: Regular expression for the names of layers with adapters, among query,
            key, value, out, gate, up and down.
        dropout: Dropout rate of the adapters' inputs.
        adapters: Names of the adapters.
        base_dtype: Type of the base's kernels and embedding tables: "float32" or
            "bfloat16".

    Raises:
        ValueError: The base_dtype is unknown, or two adapters have the same name.
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

    # Heads, decoders and poolings are trained in full
    trained = rf"{_OUTSIDE}|{LORA_LEAVES}"
    return _train_partly(objective, trained, base_dtype, add_adapters)


def bitfit(objective: Objective, *, base_dtype: str = "float32") -> Objective:
    """Trains biases only, including norms' (BitFit, Ben Zaken et al. 2022; SGPT).

    Args:
        objective: The objective to wrap.
        base_dtype: As in `lora`.

    Raises:
        ValueError: The base_dtype is unknown; on initialization, the encoder has no
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


def frozen_encoder(objective: Objective, *, base_dtype: str = "float32") -> Objective:
    """Trains heads, decoders and the parameters of a pooling, but no encoder.

    Args:
        objective: The objective to wrap.
        base_dtype: As in `lora`.

    Raises:
        ValueError: The base_dtype is unknown; on initialization, there is nothing else
            to train.
    """
    _check_dtype(base_dtype)

    def check_parts(key: Key, params: Params) -> Params:
        del key
        if "pooling" not in params:
            raise ValueError(
                "tuning is frozen_encoder, but the pooling has no parameters to train"
            )
        return params

    return _train_partly(objective, _OUTSIDE, base_dtype, check_parts)


def is_partial(name: str) -> bool:
    """Whether a tuning freezes a part of the model."""
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
    """Trains some parameters of an objective and freezes the others.

    Args:
        objective: The objective to wrap.
        trained: Regular expression for the paths of trained parameters.
        base_dtype: Type of the frozen kernels and embedding tables.
        prepare_encoder: (key, encoder's parameters) -> the encoder's parameters, with
            adapters if the tuning has them.

    Returns:
        An Objective whose frozen parameters are {"base": untrained parameters, "own":
        frozen parameters of the wrapped objective}.
    """

    def init(key: Key, encoder_params: Params | None = None) -> tuple[Params, Params]:
        params, objective_frozen = objective.init(key, encoder_params)
        params = {**params, "encoder": prepare_encoder(key, params["encoder"])}
        # Trained parameters, and the others as a frozen base
        params, base = partition(params, trained)
        return params, {
            "base": _cast_base(base, jnp.dtype(base_dtype)),
            "own": objective_frozen,
        }

    def loss(params: Params, frozen: Params, batch, key: Key) -> LossOutput:
        # The wrapped objective gets all parameters, and its own frozen parameters
        params = full_params(params, frozen)
        output = objective.loss(params, frozen["own"], batch, key)
        if output.frozen is not None:
            output = output._replace(frozen={**frozen, "own": output.frozen})
        return output

    return Objective(init, loss)


def _cast_base(base: Params, dtype: jnp.dtype) -> Params:
    """Casts the kernels and embedding tables of the base."""

    def cast(path, leaf):
        large = re.search(_LARGE, path_name(path))
        return leaf.astype(dtype) if large else leaf

    return jax.tree_util.tree_map_with_path(cast, base)


# Functions that wrap an objective, by the name of a config section `tuning`.
TUNING = {
    "full": full,
    "lora": lora,
    "bitfit": bitfit,
    "frozen_encoder": frozen_encoder,
}
