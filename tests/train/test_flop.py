"""FLOP against the figures published for ViT-L/14 and dino.txt (arXiv:2412.16334), and against
torch's counter.
"""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from curation.encoders.config import BackboneConfig, backbone_flop
from train.attention import pack
from train.config import ModelConfig, TextConfig, VisionConfig
from train.flop import captions_flop, head_flop, peak_tflops, text_flop
from train.model import DinoTxt

with torch.device("meta"):
    MODEL = DinoTxt(ModelConfig(TextConfig(1280, 24, 20), VisionConfig(blocks=2)), 49_408, 1024)


@pytest.mark.parametrize(
    ("flop", "published"),
    [
        (backbone_flop(BackboneConfig("dinov2-vitl14-reg")), 162e9),
        (text_flop(MODEL, 77.0), 73e9),
        (text_flop(MODEL, 20.0), 19e9),
    ],
)
def test_flop_is_the_published_to_five_percent(flop: float, published: float) -> None:
    """Not to one: the published text encoder computes all tokens of its last block, ours the ends
    of captions.
    """
    assert flop == pytest.approx(published, rel=0.05)


def test_head_flop_is_what_torch_counts() -> None:
    tokens = [torch.empty(1, count, 1024, device="meta") for count in (1, 4, 256)]
    with FlopCounterMode(display=False) as counter:
        MODEL.vision.eval()(tokens[0][:, 0], *tokens[1:])
    assert head_flop(MODEL, 261) == counter.get_total_flops()


def test_text_flop_is_what_torch_counts_but_for_the_causal_half() -> None:
    length = 20
    with FlopCounterMode(display=False) as counter:
        MODEL.text(pack([[1] * length] * 3).to("meta"))

    half_of_attention = 24 * 2 * length**2 * 1280  # torch counts the whole square of each caption
    assert 3 * (text_flop(MODEL, float(length)) + half_of_attention) == counter.get_total_flops()


def test_packed_captions_cost_what_each_costs_alone() -> None:
    lengths = (3.0, 9.0, 3.0, 20.0)
    packed = pack([[1] * int(length) for length in lengths])
    assert captions_flop(MODEL, packed.groups) == pytest.approx(
        sum(text_flop(MODEL, length) for length in lengths)
    )


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA H200", 989.4),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA L4", 121.0),
        ("NVIDIA L40S", 362.0),
        ("AMD EPYC 9654", None),
    ],
)
def test_peak_is_found_by_name_and_never_invented(name: str, peak: float | None) -> None:
    assert peak_tflops(name) == peak
