"""One part of the accelerator check, in a process of its own.

python -m launch.bench.accelerator_part NAME --records=FILE --deadline=T --scratch=DIR
"""

import importlib
import os
import sys
import time
from pathlib import Path

from absl import flags

from launch import main as cli
from launch.bench.records import Recorder

# {part: (module, function)}; a part imports only what it needs.
PARTS = {
    "kernels": ("check_kernels", "check_kernels"),
    "train_step": ("train_variants", "time_starbucks"),
    "train_details": ("train_variants", "time_starbucks_details"),
    "train_step_torch": ("torch_steps", "time_starbucks_peer"),
    "encode": ("inference_parts", "time_encoding"),
    "attention": ("inference_parts", "time_attention"),
    "attention_torch": ("torch_steps", "time_sdpa"),
    "lora": ("train_variants", "time_lora"),
    "lora_torch": ("torch_steps", "time_lora_peer"),
    "infonce": ("inference_parts", "time_infonce"),
    "ablation": ("ablation_part", "run_ablation"),
}
RECORDS = flags.DEFINE_string("records", None, "File of JSON lines to append to.")
DEADLINE = flags.DEFINE_float(
    "deadline", float("inf"), "Time, in seconds since 1970, that nothing starts after."
)
SCRATCH = flags.DEFINE_string("scratch", None, "Folder that the parts share.")
DATA = flags.DEFINE_string("data", "../shared/data", "Folder of the text sets.")
MODEL = flags.DEFINE_string("model", None, "Folder of a 12-layer embedder.")
TINY = flags.DEFINE_bool("tiny", False, "Whether all sizes are small enough for a CPU.")


def main() -> None:
    """Runs the part that the command line names."""
    from launch.bench.workloads import Setting

    module, function = PARTS[NAME]
    module = importlib.import_module(f"launch.bench.{module}")
    # PyTorch's parts do not start JAX's runtime, which would take the memory
    note = {} if NAME.endswith("_torch") else {"device": describe_device()}
    recorder = Recorder(NAME, Path(RECORDS.value), DEADLINE.value, note)
    setting = Setting(
        tiny=TINY.value,
        data=Path(DATA.value),
        scratch=Path(SCRATCH.value),
        model=Path(MODEL.value) if MODEL.value else None,
    )
    start = time.time()
    getattr(module, function)(setting, recorder)
    cli.log(f"{NAME}: {time.time() - start:.1f} s, {len(recorder.rows)} records")
    # Threads that still compile would keep the process
    os._exit(0)


def describe_device() -> str:
    """Number and kind of JAX's devices."""
    import jax

    return f"{jax.device_count()} x {jax.devices()[0].device_kind}"


if __name__ == "__main__":
    NAME = sys.argv.pop(1) if len(sys.argv) > 1 else ""
    if NAME not in PARTS:
        print(f"error: part {NAME!r}; known: {', '.join(PARTS)}", file=sys.stderr)
        sys.exit(1)
    cli.run(main)
