"""Parts of the accelerator check without training: encoding, InfoNCE, attention."""

import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from launch.bench.attention import attend_rows
from launch.bench.encode import compare_encoding
from launch.bench.records import Recorder
from launch.bench.timing import time_steps
from launch.bench.workloads import Setting, make_bert_config
from research.losses.matryoshka import SIZE_LOSSES
from research.losses.registry import build_loss
from research.models.config import EncoderConfig
from research.types import Array, Labels


def time_encoding(setting: Setting, recorder: Recorder) -> None:
    """Times embedding with a random BERT-base, against sentence-transformers."""
    import torch

    folder = save_bert(setting)
    texts = [row["positive"] for row in setting.read_texts("passages")]
    texts = texts[: 50 if setting.tiny else 8_192]
    length = 32 if setting.tiny else 128
    lengths = [len(e.ids) for e in setting.load_tokenizer().encode_batch(texts)]
    tokens = int(np.minimum(lengths, length).sum())

    def compare(batch_size: int) -> dict[str, Any]:
        result = compare_encoding(
            str(folder),
            texts,
            batch_size=batch_size,
            rounds=1 if setting.tiny else 3,
            device="cuda" if torch.cuda.is_available() else "cpu",
            bfloat16=True,
            max_length=length,
        )
        rates = {side: tokens / s for side, s in result["seconds"].items()}
        return {**result, "tokens": tokens, "tokens_per_second": rates}

    # Both libraries tokenize on the CPU, with the same tokenizer
    recorder.attempt("tokenizing alone", partial(_time_tokenizing, setting, texts))
    sizes = (8,) if setting.tiny else (256, 32)
    for batch_size in sizes:
        name = f"embax against sentence-transformers in batches of {batch_size}"
        recorder.attempt(name, partial(compare, batch_size), needs=15)


def save_bert(setting: Setting) -> Path:
    """Saves a random BERT-base as a Hugging Face folder; returns the folder."""
    import transformers

    folder, shape = setting.scratch / "bert", setting.bert
    if (folder / "config.json").exists():
        return folder
    config = make_bert_config(shape)
    # The tokenizer of the other parts
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls")}
    special |= {f"{name}_token": f"[{name.upper()}]" for name in ("sep", "mask")}
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=setting.load_tokenizer(),
        model_max_length=shape["max_len"],
        model_input_names=["input_ids", "attention_mask"],
        **special,
    ).save_pretrained(folder)
    transformers.BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


def _time_tokenizing(setting: Setting, texts: list[str]) -> dict[str, float]:
    start = time.perf_counter()
    setting.load_tokenizer().encode_batch(texts)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "texts_per_second": len(texts) / seconds}


def time_infonce(setting: Setting, recorder: Recorder) -> None:
    """Times InfoNCE and its gradient alone, against the same in PyTorch."""
    sizes = (64,) if setting.tiny else (4_096, 16_384, 32_768, 65_536)
    for size in sizes:
        recorder.attempt(f"embax, {size} pairs", partial(_time_infonce, setting, size))
        recorder.attempt(
            f"torch, {size} pairs", partial(_time_infonce_peer, setting, size)
        )


def _time_infonce(setting: Setting, size: int) -> dict[str, float]:
    """Seconds of the loss of `size` pairs of width 768 with its gradient."""
    size_loss = SIZE_LOSSES["full_size"](
        build_loss({"name": "infonce", "temperature": 0.05}, "cosine")
    )
    keys = jax.random.split(jax.random.key(0))
    q, d = (jax.random.normal(key, (size, 768), jnp.bfloat16) for key in keys)

    def compute_loss(q, d):
        losses, _ = size_loss.loss(q, d, Labels(), jax.random.key(0))
        return losses.mean()

    run = jax.jit(jax.value_and_grad(compute_loss, (0, 1))).lower(q, d).compile()
    timing = time_steps(
        lambda turn: run(q, d), jax.block_until_ready, seconds=0.3, **setting.timing
    )
    memory = run.memory_analysis().temp_size_in_bytes
    return {**timing, "temporary_mebibytes": memory / 2**20}


def _time_infonce_peer(setting: Setting, size: int) -> dict[str, float]:
    """The same in PyTorch, with bfloat16 products."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    q, d = (
        torch.randn(size, 768, device=device, dtype=torch.bfloat16).requires_grad_()
        for _ in range(2)
    )
    labels = torch.arange(size, device=device)

    def run(turn):
        x, y = (torch.nn.functional.normalize(v, dim=-1) for v in (q, d))
        value = torch.nn.functional.cross_entropy((20 * x @ y.T).float(), labels)
        return torch.autograd.grad(value, (q, d))

    def wait(value):
        if device == "cuda":
            torch.cuda.synchronize()

    return time_steps(run, wait, seconds=0.3, **setting.timing)


def time_attention(setting: Setting, recorder: Recorder) -> None:
    """Times attention, forward and backward, of full rows of 512 to 32k tokens."""
    tokens = 1_024 if setting.tiny else 32_768
    lengths = (64, 128) if setting.tiny else (512, 2_048, 8_192, 32_768)
    kernels = {"gpu": "flash", "tpu": "splash"}
    name = kernels.get(jax.default_backend(), "blockwise")
    # Four lengths first, those between them in the time that is left
    for length in (*lengths, *(() if setting.tiny else (1_024, 4_096, 16_384))):
        recorder.attempt(
            f"{name} {length}",
            partial(_time_rows, setting, name, length, max(1, tokens // length)),
            needs=8,
        )


def _time_rows(setting: Setting, name: str, length: int, rows: int) -> dict[str, Any]:
    """Times attention of rows that hold one text each, with its gradient."""
    heads, channels = 12, 64
    cfg = EncoderConfig(
        vocab_size=1,
        width=heads * channels,
        depth=1,
        num_heads=heads,
        mlp=1,
        attention=name,
        dropout=0.0,
        dtype="bfloat16",
    )

    def sum_output(q: Array, k: Array, v: Array, segment_ids: Array):
        return attend_rows(cfg, q, k, v, segment_ids, None).sum()

    # [R, S, H, E]
    shape = (rows, length, heads, channels)
    keys = jax.random.split(jax.random.key(0), 3)
    qkv = [jax.random.normal(key, shape, jnp.bfloat16) for key in keys]
    inputs = (*qkv, jnp.ones((rows, length), jnp.int32))
    start = time.time()
    run = jax.jit(jax.grad(sum_output, (0, 1, 2))).lower(*inputs).compile()
    compile_seconds = time.time() - start
    timing = time_steps(
        lambda turn: run(*inputs), jax.block_until_ready, seconds=0.3, **setting.timing
    )
    flops = 3 * 4 * rows * heads * length**2 * channels
    return {
        "attention": name,
        "length": length,
        "rows": rows,
        **timing,
        "teraflops_per_second": flops / timing["seconds"] / 1e12,
        "temporary_mebibytes": run.memory_analysis().temp_size_in_bytes / 2**20,
        "compile_seconds": compile_seconds,
    }
