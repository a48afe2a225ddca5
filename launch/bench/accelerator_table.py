"""The table of the accelerator check, from its records."""

from collections.abc import Mapping, Sequence
from typing import Any

from tabulate import tabulate

HEADER = ("part", "measurement", "ms", "tokens/s", "MFU", "useful MFU", "remark")


def format_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table with a line per record, and the ratios to PyTorch's side."""
    device = next((row["device"] for row in rows if "device" in row), "unknown device")
    lines = [_format_row(row) for row in rows]
    table = tabulate(lines, HEADER, tablefmt="github", disable_numparse=True)
    ratios = [
        f"- {name}: {ratio:.2f} times as fast as PyTorch"
        for name, ratio in compare_sides(rows).items()
    ]
    return "\n".join([f"Device: {device}.", "", table, "", *ratios, ""])


def compare_sides(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Speed of our side divided by PyTorch's: {measurement: ratio}."""
    rates = {
        (row["part"], row["name"]): row["tokens_per_second"]
        for row in rows
        if isinstance(row.get("tokens_per_second"), float)
    }
    ratios = {}
    # The recipe as it is against the peer's, then the fastest without dropout
    peer = ("train_step_torch", "torch, passages, dropout 0.1")
    if peer in rates and ("train_step", "default") in rates:
        ratios["train_step, default"] = rates["train_step", "default"] / rates[peer]
    peer = ("train_step_torch", "torch, passages, dropout 0.0")
    ours = [
        rate
        for (part, name), rate in rates.items()
        if part == "train_step" and name in _find_comparable(rows)
    ]
    if peer in rates and ours:
        ratios["train_step, no dropout"] = max(ours) / rates[peer]
    ours = [rate for (part, _), rate in rates.items() if part == "lora"]
    theirs = [rate for (part, _), rate in rates.items() if part == "lora_torch"]
    if ours and theirs:
        ratios["lora"] = max(ours) / max(theirs)
    # Both sides are in one record here
    for row in rows:
        if row["part"] == "encode" and "ratio" in row:
            ratios[f"encode, {row['name']}"] = row["ratio"]
    return ratios | _compare_lengths(rows) | _compare_losses(rows)


def _find_comparable(rows: Sequence[Mapping[str, Any]]) -> set[str]:
    """Names of the training steps without dropout that do the peer's work."""
    return {
        row["name"]
        for row in rows
        if row.get("encoder", {}).get("dropout") == 0
        and (row["texts"], row["batch"]) in (("passages", 512), ("passages", 8))
        and (row["size_loss"], row["bfloat16_parameters"]) == ("starbucks_sts", False)
        and "act" not in row["encoder"]
    }


def _compare_lengths(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Our fastest attention against SDPA, by length."""
    best, peer = {}, {}
    for row in rows:
        if "teraflops_per_second" not in row:
            continue
        side = peer if row["part"] == "attention_torch" else best
        length, rate = row["length"], row["teraflops_per_second"]
        side[length] = max(rate, side.get(length, 0.0))
    return {
        f"attention, {length} tokens": best[length] / peer[length]
        for length in sorted(best.keys() & peer.keys())
    }


def _compare_losses(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """InfoNCE against PyTorch's, by number of pairs."""
    seconds = {
        row["name"]: row["seconds"]
        for row in rows
        if row["part"] == "infonce" and "seconds" in row
    }
    return {
        f"infonce, {name.removeprefix('embax, ')}": seconds[peer] / seconds[name]
        for name in seconds
        if (peer := name.replace("embax", "torch")) in seconds and peer != name
    }


def _format_row(row: Mapping[str, Any]) -> list[str]:
    """The cells of a record."""
    seconds, rate = row.get("seconds"), row.get("tokens_per_second")
    if isinstance(seconds, Mapping):
        seconds, rate = seconds["ours"], (rate or {}).get("ours")
    return [
        row["part"],
        row["name"],
        f"{1e3 * seconds:.2f}" if seconds else "",
        f"{rate:,.0f}" if rate else "",
        _format_percent(row.get("mfu")),
        _format_percent(row.get("useful_mfu")),
        _format_remark(row)[:120],
    ]


def _format_percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"


def _format_remark(row: Mapping[str, Any]) -> str:
    """What is special about a record: an error, a ratio, scores, kinds of kernels."""
    if "error" in row:
        return "ERROR " + row["error"].replace("\n", " ")
    if "left_out" in row:
        return "left out: " + row["left_out"]
    if "errors" in row:
        errors = ", ".join(f"{k} {v:.1e}" for k, v in row["errors"].items())
        return f"{'equal' if row['equal'] else 'DIFFERENT'}: {errors}"
    if "scores" in row:
        return ", ".join(f"{size} {score:.2f}" for size, score in row["scores"].items())
    if "milliseconds" in row:
        return ", ".join(f"{k} {v:.1f} ms" for k, v in row["milliseconds"].items())
    if "teraflops_per_second" in row:
        return f"{row['teraflops_per_second']:.0f} TFLOP/s"
    if "ratio" in row:
        return f"{row['ratio']:.2f} times as fast as PyTorch"
    if "fill" in row:
        return f"{row['rows']}, {100 * row['fill']:.0f} % full"
    return ""
