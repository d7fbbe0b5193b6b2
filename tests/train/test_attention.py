"""Attention over packed captions: each kernel against a loop over captions, and what is said where
one cannot run.
"""

import itertools

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from train.attention import (
    KERNELS,
    MOST_CAPTIONS,
    Case,
    Packed,
    choose_attention,
    grouped_attention,
    pack,
    packed_attention,
    xformers_mask,
)
from train.config import AttentionChoice

LENGTHS = (3, 1, 5, 3, 1, 9)
LAYOUT = pack([[7] * length for length in LENGTHS])
HEADS = 2
WIDTH = 16
WITHOUT_XFORMERS = frozenset({"triton", "varlen"})


def random_qkv() -> Float[Tensor, "n 3 h d"]:
    return torch.randn(sum(LENGTHS), 3, HEADS, WIDTH, generator=torch.Generator().manual_seed(0))


def one_by_one(qkv: Float[Tensor, "n 3 h d"], layout: Packed) -> Float[Tensor, "n h d"]:
    """Each caption and each head alone, by the definition."""
    out = torch.empty(qkv[:, 0].shape, dtype=torch.float64)
    starts = layout.starts.tolist()
    for start, stop in itertools.pairwise(starts):
        q, k, v = qkv[start:stop].double().unbind(1)
        for head in range(HEADS):
            scores = q[:, head] @ k[:, head].T / WIDTH**0.5
            scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -torch.inf)
            out[start:stop, head] = scores.softmax(1) @ v[:, head]
    return out


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_grouped_attention_equals_one_caption_at_a_time(
    dtype: torch.dtype, tolerance: float
) -> None:
    qkv = random_qkv().to(dtype)
    found = grouped_attention(qkv, LAYOUT)
    assert found.dtype == dtype
    torch.testing.assert_close(
        found.double(), one_by_one(qkv, LAYOUT), rtol=tolerance, atol=tolerance
    )


def test_auto_is_the_grouped_kernel_on_a_cpu() -> None:
    qkv = random_qkv()
    assert torch.equal(packed_attention(qkv, LAYOUT), grouped_attention(qkv, LAYOUT))


@pytest.mark.parametrize("kernel", ["triton", "varlen", "xformers"])
def test_a_kernel_that_cannot_run_here_is_refused_with_what_can(kernel: AttentionChoice) -> None:
    message = (
        f"train.parallel.attention is {kernel}, but it runs on GPUs only; possible here: "
        "auto, grouped$"
    )
    with pytest.raises(ValueError, match=message):
        packed_attention(random_qkv(), LAYOUT, kernel)


@pytest.mark.parametrize("kernel", ["varlen", "xformers"])
def test_more_captions_than_a_kernel_takes_are_refused_before_it_runs(kernel: str) -> None:
    layout = pack([[1]] * (MOST_CAPTIONS + 1))
    with pytest.raises(ValueError, match="at most 65,535 captions at once on a GPU, and there are"):
        KERNELS[kernel](torch.zeros(MOST_CAPTIONS + 1, 3, 1, 16), layout)


@pytest.mark.parametrize(
    ("kernel", "case", "message"),
    [
        (
            "xformers",
            Case("cuda", 64, False, WITHOUT_XFORMERS),
            "xformers is not installed, .* auto, grouped, triton, varlen$",
        ),
        (
            "triton",
            Case("cuda", 48, False, WITHOUT_XFORMERS),
            "heads have 48 channels, .* auto, grouped, varlen$",
        ),
        (
            "varlen",
            Case("cuda", 64, True, WITHOUT_XFORMERS),
            "it does not support float32; .* auto, grouped, triton$",
        ),
    ],
)
def test_a_kernel_that_a_gpu_cannot_run_is_refused_with_the_reason(
    kernel: AttentionChoice, case: Case, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        choose_attention(kernel, case)


def test_auto_takes_our_kernel_where_it_runs() -> None:
    assert choose_attention("auto", Case("cuda", 64, False, WITHOUT_XFORMERS)) is KERNELS["triton"]
    assert choose_attention("auto", Case("cuda", 48, False, WITHOUT_XFORMERS)) is KERNELS["grouped"]
    assert choose_attention("auto", Case("cuda", 64, False, frozenset())) is KERNELS["grouped"]


def test_xformers_mask_is_causal_within_captions_and_closed_between_them() -> None:
    pytest.importorskip("xformers", reason="xformers is in the extra gpu")
    qkv = random_qkv()
    total = sum(LENGTHS)
    mask = xformers_mask(LAYOUT, torch.device("cpu")).materialize(
        (total, total), dtype=torch.float64
    )

    q, k, v = qkv.double().transpose(0, 2).unbind(1)  # heads tokens channels
    attended = (q @ k.transpose(1, 2) / WIDTH**0.5 + mask).softmax(-1) @ v
    torch.testing.assert_close(attended.transpose(0, 1), one_by_one(qkv, LAYOUT))
