"""C-RADIO: parity with the library on weights in the published names."""

import pytest
import torch
import transformers
from torch import Tensor

from curation.encoders import radio
from curation.encoders.architectures import RADIO, VisionTransformer

TINY = VisionTransformer(32, 2, 2, 9)
MAX_IMAGE_SIZE = 128


def published_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of the library under the names of the published files (queries, keys and values
    in one tensor)."""
    prefix = "radio_model.model."
    renamed = {}
    for name, tensor in state.items():
        if ".attention.k_proj." in name or ".attention.v_proj." in name or "layer_scale" in name:
            continue
        if ".attention.q_proj." in name:
            parts = [state[name.replace("q_proj", part)] for part in ("q_proj", "k_proj", "v_proj")]
            published = name.replace("encoder.layer", f"{prefix}blocks").replace(
                "attention.q_proj", "attn.qkv"
            )
            renamed[published] = torch.cat(parts)
            continue
        for ours, theirs in (
            ("embeddings.patch_projection", f"{prefix}patch_generator.embedder"),
            ("embeddings.position_embedding", f"{prefix}patch_generator.pos_embed"),
            ("embeddings.cls_register_token", f"{prefix}patch_generator.cls_token.token"),
            ("encoder.layer", f"{prefix}blocks"),
            ("attention.o_proj", "attn.proj"),
            ("input_conditioner", "radio_model.input_conditioner"),
            ("summary_idxs", "radio_model.summary_idxs"),
        ):
            name = name.replace(ours, theirs)
        renamed[name] = tensor
    return renamed


@torch.no_grad()
def test_tokens_equal_the_library() -> None:
    torch.manual_seed(0)
    library = transformers.RadioModel(radio.library_config(TINY, MAX_IMAGE_SIZE)).eval()
    state = published_names(library.state_dict())
    assert radio.matches(TINY, state)

    images = torch.rand(2, 3, 48, 64)
    cls, registers, patches = radio.build(TINY, state)(images)
    expected = library(images)
    torch.testing.assert_close(
        torch.cat((cls[:, None], registers), 1), expected.last_hidden_state[:, :10]
    )
    torch.testing.assert_close(patches, expected.features)


def test_sizes_are_those_that_the_library_publishes() -> None:
    """The library's defaults are C-RADIOv4-H's."""
    architecture = RADIO["c-radio-v4-h"]
    config = transformers.RadioConfig()
    assert radio.library_config(architecture).to_dict() == config.to_dict()


def test_weights_without_positions_are_refused() -> None:
    with pytest.raises(ValueError, match="no position embeddings"):
        radio.build(TINY, {})
