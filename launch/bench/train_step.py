"""Benchmark of training steps: a recipe's steps against the same ones in PyTorch."""

import importlib
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import ml_collections
import numpy as np

from launch.bench.columns import unpack_texts
from launch.bench.timing import compare_turns
from research import sharding
from research.experiment.workdir import prepare_run
from research.interop import load
from research.train.experiment import Experiment, abstract_state, initial_state
from research.train.optimizers import learning_rate_schedule
from research.train.step import make_step

TOLERANCE = 1e-3  # of the two losses of a step, relative


def train_step(recipe: str, model: str, rounds: int) -> dict:
    """Times steps on a recipe's batches; the peer is PyTorch with the same loss.

    Both have the recipe's learning rates and no dropout, whose draws would differ:
    equal losses in every step show that both do the same work.

    Args:
        recipe: File of a Starbucks recipe for similarity, configs/x.py.
        model: Model from which both start.
        rounds: Number of timed steps of each.

    Raises:
        ValueError: The losses of a step differ by more than a thousandth.
    """
    import transformers

    from launch.bench.torch_peer import StarbucksPeer

    config = load_recipe(recipe, f"model={model}")
    config.encoder.dropout = 0.0
    options = config.optimizer
    rate = learning_rate_schedule(
        config.steps, options.learning_rate, options.warmup, options.schedule
    )
    with tempfile.TemporaryDirectory() as folder:
        steps = prepare_steps(prepare_run(config, Path(folder)), rounds + 1)
    theirs = transformers.AutoModel.from_pretrained(load.resolve_folder(model))
    peer = StarbucksPeer(
        theirs,
        config.size_loss.pairs,
        options,
        rates=[float(rate(step)) for step in range(rounds + 1)],
        dropout=False,
    )
    # Both make the same steps, so that their losses can be compared.
    losses = {"ours": [], "theirs": []}

    def update_ours(turn):
        losses["ours"].append(steps.update(turn))

    def update_theirs(turn):
        losses["theirs"].append(peer.update(*unpack_texts(steps.batches[turn])))

    # The peer unpacks the same packed batches.
    result = compare_turns(update_ours, update_theirs, rounds)
    for step, (ours, theirs) in enumerate(zip(*losses.values(), strict=True)):
        if not np.isclose(ours, theirs, rtol=TOLERANCE):
            raise ValueError(
                f"step {step} has the losses {ours:.4f} and {theirs:.4f}: the two "
                "sides do not do the same work"
            )
    return {"config": recipe, "losses": losses, **result}


def load_recipe(name: str, variant: str = "") -> ml_collections.ConfigDict:
    """The config of configs/x.py[:arg] with a further variant, without evaluators."""
    path, _, arg = name.partition(":")
    module = importlib.import_module(path.removesuffix(".py").replace("/", "."))
    config = module.get_config(",".join(filter(None, [arg, variant])))
    config.evals = {}
    return config


class TrainingSteps:
    """The steps of a new run on its first batches, compiled for their shapes.

    Attributes:
        batches: The batches, as NumPy arrays.
        programs: {shape of a batch's rows: compiled step}.
        compile_seconds: Seconds that compiling took.
    """

    def __init__(self, experiment: Experiment, batches: Sequence):
        self.batches = batches
        self.programs, self.compile_seconds = {}, 0.0
        self._experiment, self._mesh = experiment, experiment.mesh
        self._abstract = abstract_state(experiment, self._mesh)
        shardings = jax.tree.map(lambda x: x.sharding, self._abstract)
        self._step = make_step(experiment.objective, experiment.tx, shardings)
        self._key = jax.random.key(experiment.seed)
        self._state = None

    def compile(self) -> None:
        """Compiles the step for every shape, without making the state."""
        start = time.perf_counter()
        shapes = {batch.tokens.token_ids.shape: batch for batch in self.batches}
        for shape, batch in shapes.items():
            batch = sharding.put_batch(batch, self._mesh)
            lowered = self._step.lower(self._abstract, batch, self._key)
            self.programs[shape] = lowered.compile()
        self.compile_seconds = time.perf_counter() - start

    def start(self) -> None:
        """Makes the initial state on the devices."""
        self._state = initial_state(self._experiment, self._abstract)

    def release(self) -> None:
        """Frees the state and the programs."""
        self._state, self.programs = None, {}

    def queue(self, turn: int) -> jax.Array:
        """Starts a step on a batch, the first ones again after the last.

        Returns:
            [] float32 loss before the step, which may not be computed yet.
        """
        batch = self.batches[turn % len(self.batches)]
        program = self.programs[batch.tokens.token_ids.shape]
        batch = sharding.put_batch(batch, self._mesh)
        self._state, metrics = program(self._state, batch, self._key)
        return metrics["loss"]

    def update(self, turn: int) -> float:
        """Makes one step on a batch; returns the loss before it."""
        return float(self.queue(turn))


def prepare_steps(experiment: Experiment, count: int) -> TrainingSteps:
    """The steps of a run on its first `count` batches, ready to be timed."""
    batches = [experiment.batches(step) for step in range(count)]
    steps = TrainingSteps(experiment, batches)
    steps.compile()
    steps.start()
    return steps
