"""Windows as matrices against interpolating every window and every class."""

import pytest
import torch
from torch.nn.functional import interpolate

from evaluate.windows import axis_matrix, blockwise_argmax, starts


@pytest.mark.parametrize(("full", "window", "stride"), [(10, 10, 5), (11, 4, 3), (12, 4, 4), (100, 30, 7), (5, 4, 4)])
def test_starts_see_every_pixel_and_end_at_the_border(full: int, window: int, stride: int) -> None:
    begins = starts(full, window, stride)
    assert {pixel for begin in begins for pixel in range(begin, begin + window)} == set(range(full))
    assert begins[-1] + window == full
    assert len(set(begins)) == len(begins)


@pytest.mark.parametrize(
    ("size", "window", "stride", "out"),
    [
        ((40, 56), 24, 12, (75, 101)),
        ((40, 40), 24, 24, (40, 40)),
        ((33, 47), 33, 20, (20, 31)),
        ((64, 96), 16, 5, (64, 96)),
    ],
)
@pytest.mark.parametrize("block", [1, 10_000, 10_000_000])
def test_argmax_equals_the_naive_way(
    size: tuple[int, int],
    window: int,
    stride: int,
    out: tuple[int, int],
    block: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("evaluate.windows.BLOCK_ELEMENTS", block)
    tops, lefts = starts(size[0], window, stride), starts(size[1], window, stride)
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(len(tops), len(lefts), 7, 5, 6, generator=generator).softmax(2)
    stacked = scores.permute(2, 0, 3, 1, 4).flatten(3).flatten(1, 2)
    rows = axis_matrix(5, window, tops, size[0], out[0])
    columns = axis_matrix(6, window, lefts, size[1], out[1])
    upsampled = _naive(scores, tops, lefts, window, size, out)
    torch.testing.assert_close(rows @ stacked @ columns.T, upsampled, rtol=1e-5, atol=1e-6)
    assert (blockwise_argmax(stacked, rows, columns) == upsampled.argmax(0).numpy()).all()


def _naive(
    scores: torch.Tensor,
    tops: list[int],
    lefts: list[int],
    window: int,
    size: tuple[int, int],
    out: tuple[int, int],
) -> torch.Tensor:
    total, seen = torch.zeros(scores.shape[2], *size), torch.zeros(size)
    for i, top in enumerate(tops):
        for j, left in enumerate(lefts):
            pixels = interpolate(scores[i, j][None], (window, window), mode="bilinear", align_corners=False)[0]
            total[:, top : top + window, left : left + window] += pixels
            seen[top : top + window, left : left + window] += 1
    return interpolate((total / seen)[None], out, mode="bilinear", align_corners=False)[0]
