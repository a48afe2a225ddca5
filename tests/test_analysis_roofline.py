"""Predicted time of a step."""

import pytest

from research.analysis.program_cost import Collective, ProgramCost
from research.analysis.roofline import predict_step_time, sum_link_bandwidth


def test_a_slice_sends_both_ways_where_an_axis_is_a_ring():
    assert sum_link_bandwidth("v5e:1x1") == 0
    assert sum_link_bandwidth("v5e:4x4") == 2 * 45e9
    assert sum_link_bandwidth("v5e:16x16") == 4 * 45e9
    assert sum_link_bandwidth("v5p:4x4x4") == 6 * 90e9


def test_the_longest_roof_binds_and_communication_is_added():
    mebibyte = Collective("all-gather", "f32[1]", 256, 180e9 / 2**20, 1.0, 1e-3)
    cost = ProgramCost(197e9, 8.1e11 * 2e-3, 4.5e6, (mebibyte,))
    time = predict_step_time(cost, flops=100e9, useful=150e9, topology="v5e:16x16")
    # The program's FLOPs, more than its traced share: chips repeat work
    assert time.compute == pytest.approx(1e-3)
    assert time.memory == pytest.approx(2e-3)
    assert time.wire == pytest.approx(1e-3)
    assert time.binds == "memory" and time.step == pytest.approx(3e-3)
    assert time.mfu == pytest.approx(150 / 197 / 3)
    # 4.5 million cycles at 1.5 GHz are 3 ms
    assert time.compiler == pytest.approx(4e-3)
    assert time.compiler_mfu == pytest.approx(150 / 197 / 4)
