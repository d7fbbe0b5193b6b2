"""Number formats and the Arrow schema of embedding shards."""

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest

from curation.encoders.config import BackboneConfig, geometry_of
from curation.shards.codec import Dtype, decode_tokens, encode_tokens
from curation.shards.schema import (
    CLS,
    PATCHES,
    REGISTERS,
    EmbeddingSpec,
    arrow_schema,
    scale_column,
    spec_of,
)

MakeSpec = Callable[..., EmbeddingSpec]


@pytest.fixture
def tokens() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((7, 3, 16), dtype=np.float32)


def test_spec_survives_schema_metadata(embedding_spec: MakeSpec) -> None:
    spec = embedding_spec(dtype="int8")
    assert spec_of(arrow_schema(spec)) == spec
    assert spec_of(pa.ipc.read_schema(pa.py_buffer(arrow_schema(spec).serialize()))) == spec


def test_schema_without_spec_is_refused() -> None:
    with pytest.raises(ValueError, match="embed step"):
        spec_of(pa.schema([("key", pa.string())]))


def test_schema_leaves_out_what_is_empty(embedding_spec: MakeSpec) -> None:
    names = arrow_schema(embedding_spec(num_registers=0, caption_dim=0, caption_encoder="")).names
    assert REGISTERS not in names
    assert "caption_embedding" not in names


def test_int8_schema_has_one_scale_a_token(embedding_spec: MakeSpec) -> None:
    schema = arrow_schema(embedding_spec(dtype="int8"))
    assert schema.field(scale_column(PATCHES)).type.list_size == 4
    assert schema.field(scale_column(CLS)).type.list_size == 1


def test_pooled_spec_with_registers_is_refused(embedding_spec: MakeSpec) -> None:
    with pytest.raises(ValueError, match="pooled"):
        embedding_spec(content="pooled")


def test_row_bytes_counts_every_vector(embedding_spec: MakeSpec) -> None:
    assert embedding_spec().row_bytes() == 2 * 8 * (1 + 2 + 4) + 2 * 4
    assert embedding_spec(dtype="int8").row_bytes() == (8 + 4) * (1 + 2 + 4) + 2 * 4


def test_float16_round_trip_is_numpy_rounding(tokens: np.ndarray) -> None:
    stored, scale = encode_tokens(tokens, "float16")
    assert scale is None
    np.testing.assert_array_equal(
        decode_tokens(stored, scale, "float16"), tokens.astype(np.float16).astype(np.float32)
    )


def test_bfloat16_round_trip_equals_torch(tokens: np.ndarray) -> None:
    torch = pytest.importorskip("torch")
    stored, scale = encode_tokens(tokens, "bfloat16")
    assert stored.dtype == np.uint16
    expected = torch.from_numpy(tokens).bfloat16().float().numpy()
    np.testing.assert_array_equal(decode_tokens(stored, scale, "bfloat16"), expected)


def test_int8_error_is_at_most_half_a_step_of_its_token(tokens: np.ndarray) -> None:
    tokens[2, 1] *= 1000
    tokens[3, 0] = 0
    stored, scale = encode_tokens(tokens, "int8")
    error = np.abs(decode_tokens(stored, scale, "int8") - tokens)
    assert (error <= 0.5001 * np.abs(tokens).max(axis=2, keepdims=True) / 127).all()
    assert not decode_tokens(stored, scale, "int8")[3, 0].any()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_values_are_refused(tokens: np.ndarray, dtype: Dtype, bad: float) -> None:
    tokens[1, 2, 3] = bad
    with pytest.raises(ValueError, match="finite"):
        encode_tokens(tokens, dtype)


def test_float16_overflow_is_refused(tokens: np.ndarray) -> None:
    tokens[0, 0, 0] = 1e5
    with pytest.raises(ValueError, match="bfloat16"):
        encode_tokens(tokens, "float16")


def test_stored_bytes_follow_content_and_format() -> None:
    """ViT-L/14 with registers at 224 px: 1 + 4 + 256 tokens of 1,024 channels."""
    geometry = geometry_of(BackboneConfig("dinov2-vitl14-reg"))
    assert EmbeddingSpec.for_content(geometry, "pooled", 4).row_bytes() == 4096
    assert EmbeddingSpec.for_content(geometry, "tokens", 4).row_bytes() == 261 * 1024 * 2
    assert EmbeddingSpec.for_content(geometry, "tokens", 4, dtype="int8").row_bytes() == 261 * (
        1024 + 4
    )
    assert EmbeddingSpec.for_content(geometry, "grid", 2).num_image_tokens == 1 + 4 + 4


def test_a_grid_finer_than_the_backbones_is_refused() -> None:
    geometry = geometry_of(BackboneConfig("random-vit", image_size=56))
    with pytest.raises(ValueError, match="finer than the backbone's"):
        EmbeddingSpec.for_content(geometry, "grid", 5)
