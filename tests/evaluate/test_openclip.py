"""The comparison encoder: unit vectors of the right shapes where open_clip is there, a clear error
where it is not.
"""

import importlib.util

import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize

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


@pytest.mark.slow
@pytest.mark.skipif(not IS_INSTALLED, reason="open_clip is not installed")
@pytest.mark.parametrize("architecture", ["ViT-B-32", "EVA02-B-16", "coca_ViT-B-32"])
@torch.inference_mode()
def test_texts_without_padding_have_the_vectors_of_padded_ones(architecture: str) -> None:
    import open_clip

    texts = ["a photo of two dogs that run through deep snow behind a house", "a cat", "x"]
    torch.manual_seed(0)
    encoder = OpenClipEncoder(architecture, "")
    torch.manual_seed(0)
    model = open_clip.create_model(architecture).eval()
    padded = model.encode_text(open_clip.get_tokenizer(architecture)(texts))
    torch.testing.assert_close(
        encoder.encode_text(texts), normalize(padded, dim=-1), rtol=0, atol=1e-6
    )
