"""Command that finds where to cut a model: the loss of embeddings after every block.

python -m launch.prune --model=M --data=pairs.jsonl.gz|pydocs [--share=0.2,0.5]

To cut the model: python -m launch.export --model=M --output=DIR --depth=L, or train it
with --config.encoder.depth=L.
"""

import tempfile
from pathlib import Path

from absl import flags

from launch import flags as options
from launch import main as cli
from research.analysis import layer_pruning
from research.data.pairs.pair_batches import make_pair_batches
from research.data.sources import SOURCES

DATA = flags.DEFINE_string(
    "data",
    None,
    "The training data: a file of pairs or triplets, or pydocs.",
    required=True,
)
BATCHES = flags.DEFINE_integer(
    "batches", 100, "The number of batches of pairs.", lower_bound=1
)
BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", 64, "The number of pairs per batch.", lower_bound=2
)
SHARES = flags.DEFINE_list(
    "share",
    [],
    "Shares of the last blocks, such as 0.2,0.5; the depths without them are printed.",
)
SEED = cli.define_seed("The seed of the batches' order.")
cli.group_flags("Data", DATA, BATCHES, BATCH_SIZE, SHARES, SEED)


def main() -> dict:
    """Returns the losses and the best depths; the default pooling is weighted mean."""
    # Flags that would restrict the measurement.
    for flag in (options.DEPTH, options.DIM):
        if flag.value is not None:
            raise ValueError(
                f"--{flag.name}={flag.value}: the loss of every block is measured"
            )
    model = options.load_model()
    # Depths without the given shares of the last blocks.
    shares = [float(share) for share in SHARES.value]
    depths = {
        f"{share:g}": layer_pruning.remaining_depth(model.config.depth, share)
        for share in shares
    }
    pool = options.POOL.value or "weighted_mean"
    # [L] losses, and the best depth in each half.
    losses = layer_pruning.layer_losses(
        model.params, model.config, _make_batches(model), pool=pool
    )
    small, large = layer_pruning.find_prune_depths(losses)
    return {
        "model": options.MODEL.value,
        "pool": pool,
        "losses": losses.tolist(),
        "small": small,
        "large": large,
        **({"last": depths} if depths else {}),
    }


def _make_batches(model):
    # One source of pairs.
    source = SOURCES["pydocs"]() if DATA.value == "pydocs" else None
    source = source or SOURCES["files"](path=DATA.value)
    # Tokenized texts are cached only while the command runs.
    length = options.MAX_LENGTH.value or model.max_length
    with tempfile.TemporaryDirectory() as cache:
        batches = make_pair_batches(
            {"pairs": source},
            model.tokenizer,
            batch_size=BATCH_SIZE.value,
            max_length=length,
            seed=SEED.value,
            cache=Path(cache),
        )
        yield from map(batches, range(BATCHES.value))


if __name__ == "__main__":
    cli.run(main)
