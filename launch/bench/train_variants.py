"""Training steps of the accelerator check: variants of one step, timed by turns."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from launch.bench.columns import (
    count_tokens,
    save_columns,
    unpack_texts,
    useful_flops,
)
from launch.bench.kernel_profile import profile_kernels
from launch.bench.records import Recorder, read_records
from launch.bench.timing import time_steps
from launch.bench.train_step import TrainingSteps
from launch.bench.variants import (
    BEST_NLI,
    FIRST,
    NLI,
    SECOND,
    Variant,
    describe_variant,
    make_lora_config,
    make_starbucks_config,
)
from launch.bench.workloads import Setting
from research.experiment.build import build
from research.train.chips import peak_flops
from research.train.experiment import Experiment

BATCHES = 3  # batches that a variant is timed on, all of one shape
COMPILERS = 6  # threads that compile variants
TIMING = 4  # seconds that the timing of a variant takes
SECONDS = 12  # without which no variant is timed, and no profile made


def time_starbucks(setting: Setting, recorder: Recorder) -> None:
    """Times the variants of a Starbucks step, and profiles the fastest one."""
    cpu = jax.default_backend() == "cpu"
    bench = VariantBench(setting, recorder)
    # The default first: its figures are there whatever comes after
    bench.time_all([FIRST[0], NLI])
    # cuDNN and Triton run on GPUs only
    first = [v for v in FIRST[1:] if not cpu or "attention" not in v.encoder]
    bench.time_all(first[:2] if setting.tiny else first)
    if not setting.tiny:
        bench.time_all(bench.inherit([BEST_NLI]))
    bench.profile_best()


def time_starbucks_details(setting: Setting, recorder: Recorder) -> None:
    """Times variants of the fastest step of the earlier part."""
    bench = VariantBench(setting, recorder)
    # The fastest step that the earlier part recorded
    rates = {
        row["name"]: row.get("tokens_per_second", 0.0)
        for row in read_records(recorder.path)
        if row["part"] == "train_step"
    }
    bench.best = max(FIRST, key=lambda variant: rates.get(variant.name, 0.0))
    bench.time_all(bench.inherit(SECOND[:2] if setting.tiny else SECOND))


def time_lora(setting: Setting, recorder: Recorder) -> None:
    """Times steps of LoRA tuning of a decoder."""
    bench = VariantBench(setting, recorder, make_config=make_lora_config)
    gpu = jax.default_backend() == "gpu"
    variants = [
        Variant("remat dots", {"remat": "dots"}, "nli"),
        Variant("remat all", {"remat": "all"}, "nli"),
    ]
    if gpu:
        kernel = {"remat": "dots", "attention": "flash"}
        variants.insert(0, Variant("flash, remat dots", kernel, "nli"))
    bench.time_all(variants)


class Program(NamedTuple):
    """A training step with its batches.

    Attributes:
        steps: The steps.
        columns: Columns of texts of each batch.
        flops: FLOP of a step.
    """

    steps: TrainingSteps
    columns: list
    flops: float


class VariantBench:
    """Compiles variants in parallel, then times one after the other.

    Args:
        setting: Sizes and folders.
        recorder: Recorder of the part.
        make_config: Function from the setting and a variant to a config.
    """

    def __init__(
        self,
        setting: Setting,
        recorder: Recorder,
        make_config: Callable = make_starbucks_config,
    ):
        self.setting, self.recorder = setting, recorder
        self.make_config = make_config
        self.best, self.best_rate = None, 0.0
        self._flops = {}  # {shape of rows, size loss: FLOP}

    def time_all(self, variants: Sequence[Variant]) -> None:
        """Compiles and times variants, as far as the time of the part suffices."""
        programs = {}
        pool = ThreadPoolExecutor(COMPILERS)
        for variant in variants:
            # Built one by one: they share files of tokens
            try:
                program = self._prepare(variant)
            except Exception as error:
                program = error
            programs[variant.name] = pool.submit(_compile, program)
        # Nothing is timed while another program compiles, which uses the device
        reserve = SECONDS + TIMING * len(variants)
        for future in programs.values():
            _wait(future, max(1.0, self.recorder.measure_seconds_left() - reserve))
        # A compilation that still runs is not waited for
        pool.shutdown(wait=False, cancel_futures=True)
        for variant in variants:
            self._attempt(variant, programs.pop(variant.name))

    def _attempt(self, variant: Variant, program: Future) -> None:
        """Times a variant, and keeps it if it is the fastest one."""
        fields = self.recorder.attempt(
            variant.name, lambda: self._time(variant, program), needs=SECONDS / 2
        )
        rate = (fields or {}).get("tokens_per_second", 0.0)
        if variant.texts == FIRST[0].texts and rate > self.best_rate:
            self.best, self.best_rate = variant, rate

    def inherit(self, variants: Sequence[Variant]) -> list[Variant]:
        """The variants with the encoder's fields of the fastest one so far."""
        best = self.best or FIRST[0]
        return [
            v._replace(encoder={**best.encoder, **v.encoder}) if v.inherits else v
            for v in variants
        ]

    def profile_best(self) -> None:
        """Records the GPU kernels of the fastest variant."""
        variant = self.best or FIRST[0]
        self.recorder.attempt(
            f"kernels of {variant.name}", lambda: self._profile(variant), needs=SECONDS
        )

    def _prepare(self, variant: Variant) -> "Program":
        """The steps of a variant on batches of one shape, not compiled yet."""
        experiment = self._build(self.make_config(self.setting, variant))
        if variant.bfloat16:
            experiment = _train_in_bfloat16(experiment)
        batches = choose_batches(experiment.batches)
        columns = [unpack_texts(batch) for batch in batches]
        # For PyTorch's side, which trains on the same texts
        kind = "lora" if self.make_config is make_lora_config else "starbucks"
        name = f"{kind}-{variant.texts}-{len(batches[0].query_index)}"
        save_columns(self.setting.scratch, name, columns)
        flops = self._count_flops(variant, batches[0])
        return Program(TrainingSteps(experiment, batches), columns, flops)

    def _build(self, config) -> Experiment:
        cache = self.setting.scratch / "tokens"
        return build(config, cache=cache, tokenizer=self.setting.load_tokenizer())

    def _count_flops(self, variant: Variant, batch) -> float:
        """FLOP of the matrix products of a step, without what remat computes again."""
        key = (batch.tokens.token_ids.shape, len(batch.query_index), variant.size_loss)
        if key not in self._flops:
            # Dense attention over full rows; fused kernels hide theirs
            plain = {"attention": "plain", "remat": "none", "dropout": 0.0}
            plain = variant._replace(encoder={**variant.encoder, **plain})
            experiment = self._build(self.make_config(self.setting, plain))
            self._flops[key] = count_flops(experiment, batch)
        return self._flops[key]

    def _time(self, variant: Variant, program: Future) -> dict[str, Any]:
        """Times a compiled variant; returns the fields of its record."""
        if not program.done():
            raise TimeoutError("it was not compiled in the time of this part")
        if program.cancelled():
            raise TimeoutError("its compilation did not start in the time of this part")
        steps, columns, flops = program.result()
        memory = next(iter(steps.programs.values())).memory_analysis()
        compile_seconds = steps.compile_seconds
        steps.start()
        try:
            losses = [float(steps.queue(turn)) for turn in range(len(steps.batches))]
            timing = time_steps(
                steps.queue, jax.block_until_ready, **self.setting.timing
            )
        finally:
            steps.release()
        batch = steps.batches[0]
        tokens = float(np.mean([count_tokens(c) for c in columns]))
        useful = useful_flops(self.setting.bert, columns[0])
        # Rates are of tokens without padding
        return {
            **describe_variant(variant),
            "rows": list(batch.tokens.token_ids.shape),
            "batch": len(batch.query_index),
            "tokens": tokens,
            "fill": tokens / batch.tokens.token_ids.size,
            **timing,
            "tokens_per_second": tokens / timing["seconds"],
            "pairs_per_second": len(batch.query_index) / timing["seconds"],
            "teraflops": flops / 1e12,
            "mfu": measure_utilization(flops, timing["seconds"]),
            "useful_mfu": measure_utilization(useful, timing["seconds"])
            if self.make_config is make_starbucks_config
            else None,
            "temporary_mebibytes": memory.temp_size_in_bytes / 2**20,
            "compile_seconds": compile_seconds,
            "losses": losses,
            "texts_from": self.setting.describe_texts(variant.texts),
        }

    def _profile(self, variant: Variant) -> dict[str, Any]:
        steps = _compile(self._prepare(variant)).steps
        steps.start()
        try:
            jax.block_until_ready(steps.queue(0))
            return profile_kernels(
                lambda turn: steps.queue(turn), self.setting.scratch / "profile"
            )
        finally:
            steps.release()


def _compile(program: Program | Exception) -> Program:
    """Compiles a prepared step; an error of its preparation is raised here."""
    if isinstance(program, Exception):
        raise program
    program.steps.compile()
    return program


def _wait(program: Future, seconds: float) -> None:
    """Waits for a future, at most so many seconds; its errors are raised later."""
    end = time.time() + seconds
    while not program.done() and time.time() < end:
        time.sleep(0.05)


def choose_batches(batches: Callable[[int], Any]) -> list:
    """Some batches that have the same shape, the most common one."""
    candidates = [batches(step) for step in range(3 * BATCHES)]
    shapes = [batch.tokens.token_ids.shape for batch in candidates]
    shape = Counter(shapes).most_common(1)[0][0]
    return [b for b, s in zip(candidates, shapes, strict=True) if s == shape][:BATCHES]


def count_flops(experiment, batch) -> float:
    """FLOP of the matrix products in the loss of a batch and its gradient."""
    from research.train.flops import matmul_flops

    params, frozen = jax.eval_shape(experiment.objective.init, jax.random.key(0))

    def loss(params, frozen, batch, key):
        return experiment.objective.loss(params, frozen, batch, key).value

    arguments = (params, frozen, batch, jax.random.key(0))
    return float(matmul_flops(jax.make_jaxpr(jax.grad(loss))(*arguments).jaxpr))


def measure_utilization(flops: float, seconds: float) -> float | None:
    """Share of the devices' peak in bfloat16; None where the peak is unknown."""
    devices = jax.devices()
    peak = peak_flops(devices[0].device_kind)
    return None if peak is None else flops / seconds / peak / len(devices)


def _train_in_bfloat16(experiment):
    """The experiment with parameters, and so moments, in bfloat16."""
    objective = experiment.objective

    def init(key, *arguments):
        trees = objective.init(key, *arguments)
        return jax.tree.map(lambda x: x.astype(jnp.bfloat16), trees)

    return experiment._replace(objective=objective._replace(init=init))
