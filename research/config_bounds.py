"""Bounds of the numbers in a config, such as a temperature above 0."""

import math
from typing import Any

# Bounds of numbers by the name of their argument, the same for all functions. A few
# functions have a bound of their own, as function.argument.
BOUNDS = {
    "above 0": """
        temperature kl_temperature cosent.scale angle.scale angle_triplets.scale eps
        limit.queries limit.widths sticky_tokens.pairs float8.scale pq.parts
        product_quantization.parts
        norm_eps rope_theta score_range count rank clusters heads latents mult patterns
        positives vocab vocab_size width mlp max_len num_heads experts_per_token dims
        samples_per_label cluster_size experiments repetitions texts_per_repetition
        token_geometry.tokens token_states.tokens outliers.threshold outliers.controls
        words documents texts sentences views
        teacher_temperature stella.widths refresh.every refresh.negatives dynamic.every
        dynamic.negatives dynamic.ratio dynamic.replacements
        random.every random.negatives
        """,
    "at least 0": """
        learning_rate focal warmup weight_decay clip_norm micro_batch limit min_chars
        samples queries max_texts angle_weight cosine_weight in_batch_weight hard_weight
        kl_weight last_weight prior_weight bag_weight weight weights triplet.margin
        sticky_tokens.tokens window cycle min_length num_kv_heads head_dim num_experts
        query_tokens document_tokens query_length document_length flops.query
        flops.document binary.rescore retrieval
        st5_adaptive.kl_temperature st6_adaptive.kl_temperature hardness positive_margin
        stella.margin gist.margin similarity_weight relative_weight distance_weight
        passages.context passages.negatives chunks.min_words
        random_walk.length snow_sample.length reconstruction_weight
        head_width mixed_pairs dynamic.skip dynamic.max_score
        """,
    "in 0 ... 1": """
        betas ratio ratios replace decoder_ratio short_probability size
        rope_fraction
        """,
    "at least 0 and below 1": "dropout attention_dropout decay mask_share",
    # NumPy's seeds are not negative, JAX's and scikit-learn's have 32 bits
    "in 0 ... 2^32 - 1": "seed",
}
BOUND_OF = {name: bound for bound, names in BOUNDS.items() for name in names.split()}


def check_bounds(function: str, argument: str, value: Any) -> None:
    """Raises ValueError if a number, or one in a tuple, is not within its bound.

    Args:
        function: Name of the function that takes the argument.
        argument: Name of the argument.
        value: Its value, of any type.
    """
    bound = BOUND_OF.get(f"{function}.{argument}") or BOUND_OF.get(argument)
    if bound is None:
        return
    for number in value if isinstance(value, list | tuple) else [value]:
        if isinstance(number, int | float) and not _is_within(number, bound):
            raise ValueError(
                f"{function}'s {argument} is {value!r}; it should be {bound}"
            )


def _is_within(number: float, bound: str) -> bool:
    if not math.isfinite(number) or number < 0:
        return False
    if bound == "above 0":
        return number > 0
    if bound == "at least 0 and below 1":
        return number < 1
    largest = {"in 0 ... 1": 1, "in 0 ... 2^32 - 1": 2**32 - 1}
    return number <= largest.get(bound, number)
