"""The comparison encoder: unit vectors of the right shapes where open_clip is there, a clear error
where it is not.
"""

import importlib.util

import pytest
import torch
from PIL import Image

from evaluate.openclip import OpenClipEncoder

IS_INSTALLED = importlib.util.find_spec("open_clip") is not None


@pytest.mark.skipif(IS_INSTALLED, reason="open_clip is installed")
def test_missing_package_is_a_clear_error() -> None:
    with pytest.raises(ValueError, match="pip install open_clip_torch"):
        OpenClipEncoder("ViT-B-32", "")


@pytest.mark.slow
@pytest.mark.skipif(not IS_INSTALLED, reason="open_clip is not installed")
def test_vectors_have_unit_norm_and_dense_ones_compare() -> None:
    encoder = OpenClipEncoder("ViT-B-32", "")
    images = [Image.new("RGB", (80, 60), color) for color in ("red", "blue")]
    texts = encoder.encode_text(["a red thing"])
    dense = encoder.encode_text(["a red thing"], dense=True)
    patches = encoder.encode_patches(images)
    assert patches.shape == (2, 7, 7, texts.shape[1])
    assert encoder.encode_image(images).shape == (2, texts.shape[1])
    torch.testing.assert_close(texts, dense)
    torch.testing.assert_close(patches.norm(dim=-1), torch.ones(2, 7, 7))
