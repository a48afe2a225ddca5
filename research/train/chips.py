"""Peak speeds of accelerators, by which MFU is measured."""

import re

# Dense bfloat16 matrix products of one device, in FLOP/s, from the data sheets. Names
# are those of `jax.Device.device_kind`, or the part of it that names the chip.
PEAK_FLOPS = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L4": 121e12,
    "TPU v4": 275e12,
    "TPU v4 lite": 138e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
}


def peak_flops(device_kind: str) -> float | None:
    """Peak FLOP/s of a device in bfloat16; None for CPUs and unknown chips.

    Args:
        device_kind: `jax.Device.device_kind`, such as "NVIDIA H100 80GB HBM3".
    """
    # "TPU v5 lite" also contains "TPU v5", so longer names come first; whole words, as
    # an L40S is no L4.
    for name in sorted(PEAK_FLOPS, key=len, reverse=True):
        if re.search(rf"\b{name}\b", device_kind):
            return PEAK_FLOPS[name]
    return None
