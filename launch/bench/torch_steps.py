"""The PyTorch side of the accelerator check: the same texts, shapes and losses.

It runs in processes of its own, which do not use JAX's devices.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import transformers

from launch.bench.columns import count_tokens, load_columns, useful_flops
from launch.bench.records import Recorder
from launch.bench.timing import time_steps
from launch.bench.torch_peer import LoraPeer, StarbucksPeer
from launch.bench.workloads import Setting, make_bert_config, starbucks_config
from research.train.chips import peak_flops

SDPA_HEADS = 12, 64  # heads and channels per head


def find_device() -> str:
    """The device that PyTorch runs on."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def wait_for_device(value: Any) -> None:
    """Waits until the device has done all that was queued."""
    del value
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def time_starbucks_peer(setting: Setting, recorder: Recorder) -> None:
    """Times Starbucks steps on the batches of `train_variants.time_starbucks`."""
    for texts, dropout in (("passages", 0.1), ("passages", 0.0), ("nli", 0.1)):
        recorder.attempt(
            f"torch, {texts}, dropout {dropout}",
            lambda t=texts, d=dropout: _time_starbucks(setting, t, d),
            needs=10,
        )


def time_lora_peer(setting: Setting, recorder: Recorder) -> None:
    """Times LoRA steps on the batches of `train_variants.time_lora`."""
    for checkpointing in (False, True):
        name = "torch and peft" + ", gradient checkpointing" * checkpointing
        recorder.attempt(name, lambda c=checkpointing: _time_lora(setting, c), needs=10)


def time_sdpa(setting: Setting, recorder: Recorder) -> None:
    """Times `scaled_dot_product_attention`, forward and backward, by length."""
    tokens = 1_024 if setting.tiny else 32_768
    lengths = (64, 128) if setting.tiny else (512, 2_048, 8_192, 32_768)
    for length in (*lengths, *(() if setting.tiny else (1_024, 4_096, 16_384))):
        recorder.attempt(
            f"sdpa {length}",
            lambda n=length: _time_attention(setting, n, max(1, tokens // n)),
            needs=4,
        )


def _time_starbucks(setting: Setting, texts: str, dropout: float) -> dict[str, Any]:
    shape = setting.bert
    batch_size = 8 if setting.tiny else 512
    batches = load_columns(setting.scratch, f"starbucks-{texts}-{batch_size}")
    # The same sizes, dropout and optimizer as our side
    config = make_bert_config(shape, dropout)
    model = transformers.BertModel(config, add_pooling_layer=False)
    recipe = starbucks_config(setting, texts, batch_size)
    peer = StarbucksPeer(
        model,
        recipe.size_loss.pairs,
        recipe.optimizer,
        device=find_device(),
        autocast=True,
    )
    fields = _time_batches(setting, peer.queue, batches)
    useful = useful_flops(shape, batches[0])
    return {
        **fields,
        "useful_mfu": measure_utilization(useful, fields["seconds"]),
        "attention": model.config._attn_implementation,
        "texts": texts,
        "dropout": dropout,
        "texts_from": setting.describe_texts(texts),
    }


def _time_lora(setting: Setting, checkpointing: bool) -> dict[str, Any]:
    import peft

    shape = setting.qwen2
    batches = load_columns(setting.scratch, f"lora-nli-{8 if setting.tiny else 512}")
    config = transformers.Qwen2Config(
        vocab_size=shape["vocab_size"],
        hidden_size=shape["width"],
        intermediate_size=shape["mlp"],
        num_hidden_layers=shape["depth"],
        num_attention_heads=shape["num_heads"],
        num_key_value_heads=shape["num_kv_heads"],
        max_position_embeddings=shape["max_len"],
    )
    # Base weights in bfloat16, adapters in float32, as our side has them
    with torch.device(find_device()):
        model = transformers.Qwen2Model(config).to(torch.bfloat16)
    if checkpointing:
        model.gradient_checkpointing_enable()
        model.enable_input_require_grads()
    layers = ("q", "k", "v", "o", "gate", "up", "down")
    adapters = peft.LoraConfig(
        r=16, lora_alpha=32, target_modules=[f"{name}_proj" for name in layers]
    )
    model = peft.get_peft_model(model, adapters)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    peer = LoraPeer(model, 1e-4, 0.02, find_device())
    return _time_batches(setting, peer.queue, batches)


def _time_batches(
    setting: Setting, queue: Callable, batches: Sequence
) -> dict[str, Any]:
    """Times steps on some batches in turn."""
    start = time.time()
    losses = [float(queue(*batch)) for batch in batches]
    first = time.time() - start
    timing = time_steps(
        lambda turn: queue(*batches[turn % len(batches)]),
        wait_for_device,
        **setting.timing,
    )
    # Padding does not count
    tokens = float(np.mean([count_tokens(batch) for batch in batches]))
    memory = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return {
        "batch": len(batches[0][0]),
        "tokens": tokens,
        **timing,
        "tokens_per_second": tokens / timing["seconds"],
        "pairs_per_second": len(batches[0][0]) / timing["seconds"],
        "first_steps_seconds": first,
        "peak_mebibytes": memory / 2**20,
        "losses": losses,
    }


def _time_attention(setting: Setting, length: int, rows: int) -> dict[str, Any]:
    """Times attention of full rows in bfloat16, with the gradient of q, k and v."""
    heads, channels = SDPA_HEADS
    shape = (rows, heads, length, channels)
    q, k, v = (
        torch.randn(shape, dtype=torch.bfloat16, device=find_device()).requires_grad_()
        for _ in range(3)
    )
    attend = torch.nn.functional.scaled_dot_product_attention

    def run(turn):
        del turn
        return torch.autograd.grad(attend(q, k, v).sum(), (q, k, v))

    timing = time_steps(run, wait_for_device, seconds=0.3, **setting.timing)
    # 2 products forward, 5 backward; and 2 + 4 without what is computed again
    flops = 3 * 4 * rows * heads * length**2 * channels
    return {
        "length": length,
        "rows": rows,
        **timing,
        "teraflops_per_second": flops / timing["seconds"] / 1e12,
    }


def measure_utilization(flops: float, seconds: float) -> float | None:
    """Share of one GPU's peak in bfloat16; None where the peak is unknown."""
    if not torch.cuda.is_available():
        return None
    peak = peak_flops(torch.cuda.get_device_name())
    return None if peak is None else flops / seconds / peak
