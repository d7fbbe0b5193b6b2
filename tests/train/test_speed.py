"""Speeds: counts over seconds, memory, and no MFU where the peak is unknown."""

import pytest
import torch

from train.speed import Speed


@pytest.mark.usefixtures("process_group")
def test_rates_are_counts_over_one_time_and_mfu_needs_a_known_peak() -> None:
    speed = Speed()
    with speed.waiting_for_data():
        pass
    speed.add(8, 60, 1, 4e12)
    speed.add(8, 100, 2, 6e12)
    rates = speed.rates(torch.device("cpu"))
    assert rates["tokens_per_s"] / rates["pairs_per_s"] == pytest.approx(10)
    assert rates["model_tflop_per_s"] / rates["pairs_per_s"] == pytest.approx(10 / 16)
    assert rates["captions_cut"] == 3
    assert 0 <= rates["data_wait"] < 1
    assert rates["memory_gb"] > 0.01
    assert "mfu" not in rates
