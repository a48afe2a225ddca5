import pytest

from research.train.chips import peak_flops


@pytest.mark.parametrize(
    ("device_kind", "teraflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989),
        ("NVIDIA A100-SXM4-40GB", 312),
        ("NVIDIA L4", 121),
        ("TPU v4", 275),
        ("TPU v4 lite", 138),
        ("TPU v5 lite", 197),
        ("TPU v5", 459),
        ("TPU v6 lite", 918),
    ],
)
def test_a_chips_peak_is_that_of_its_data_sheet(device_kind, teraflops):
    assert peak_flops(device_kind) == teraflops * 1e12


@pytest.mark.parametrize("device_kind", ["cpu", "NVIDIA L40S", "TPU v9"])
def test_other_chips_have_no_peak(device_kind):
    assert peak_flops(device_kind) is None
