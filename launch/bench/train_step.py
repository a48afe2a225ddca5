"""Benchmark of training steps: a recipe's steps against the same ones in PyTorch."""

import importlib
import tempfile
from pathlib import Path

import jax
import ml_collections

from launch.bench.timing import compare_turns
from research import sharding
from research.experiment.workdir import prepare_run
from research.interop import load
from research.train.loop import abstract_state, initial_state
from research.train.step import make_step


def train_step(recipe: str, model: str, rounds: int) -> dict:
    """Times steps on a recipe's batches; the peer is PyTorch with the same loss.

    Args:
        recipe: File of a Starbucks recipe for similarity, configs/x.py.
        model: Model from which both start.
        rounds: Number of timed steps of each.
    """
    from launch.bench.torch_peer import StarbucksPeer, unpack_texts

    config = load_recipe(recipe, f"model={model}")
    with tempfile.TemporaryDirectory() as folder:
        steps = TrainingSteps(config, Path(folder), rounds + 1)
    folder = load.resolve_folder(model)
    peer = StarbucksPeer(folder, config.size_loss.pairs, config.optimizer)
    # Both make the same steps, so that their losses can be compared.
    losses = {"ours": [], "theirs": []}

    def update_ours(turn):
        losses["ours"].append(steps.update(turn))

    def update_theirs(turn):
        losses["theirs"].append(peer.update(*unpack_texts(steps.batches[turn])))

    # The peer unpacks the same packed batches.
    result = compare_turns(update_ours, update_theirs, rounds)
    return {"config": recipe, "losses": losses, **result}


def load_recipe(name: str, variant: str = "") -> ml_collections.ConfigDict:
    """The config of configs/x.py[:arg] with a further variant, without evaluators."""
    path, _, arg = name.partition(":")
    module = importlib.import_module(path.removesuffix(".py").replace("/", "."))
    config = module.get_config(",".join(filter(None, [arg, variant])))
    config.evals = {}
    return config


class TrainingSteps:
    """The steps of a new run, compiled for the shapes of its first batches.

    Attributes:
        batches: The first `count` batches, as NumPy arrays.
    """

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        workdir: Path,
        count: int,
        cache: Path | None = None,
    ):
        experiment = prepare_run(config, workdir, cache=cache)
        self._mesh = experiment.mesh
        abstract = abstract_state(experiment, self._mesh)
        self._state = initial_state(experiment, abstract)
        state_sharding = jax.tree.map(lambda x: x.sharding, self._state)
        self._step = make_step(experiment.objective, experiment.tx, state_sharding)
        self._key = jax.random.key(config.seed)
        self.batches = [experiment.batches(step) for step in range(count)]
        # Compile every shape before anything is timed.
        shapes = {b.tokens.token_ids.shape: turn for turn, b in enumerate(self.batches)}
        for turn in shapes.values():
            self.update(turn)

    def update(self, turn: int) -> float:
        """Makes one step on a batch; returns the loss before it."""
        batch = sharding.put_batch(self.batches[turn], self._mesh)
        self._state, metrics = self._step(self._state, batch, self._key)
        return float(metrics["loss"])
