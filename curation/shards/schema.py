"""The format of an embedding shard: column names, the Arrow schema, and shapes of its vectors.

The spec is stored twice, in the manifest and in the Arrow schema metadata of every shard, so that a
shard alone says which backbone made it. bfloat16 is stored as its 16 bits in uint16 (Arrow does not
have the type). int8 has one float32 scale per token.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from curation.encoders.config import Geometry
from curation.shards.codec import STORED_TYPES, Dtype, encode_tokens

KEY = "key"
SOURCE = "source"
CAPTIONS = "captions"
CLS = "cls"
REGISTERS = "registers"
PATCHES = "patches"
CAPTION_EMBEDDING = "caption_embedding"
BYTES_HASH = "bytes_hash"
PIXEL_HASH = "pixel_hash"
PERCEPTUAL_HASH = "perceptual_hash"
THUMBNAIL = "thumbnail"

HASHES = (BYTES_HASH, PIXEL_HASH)
PERCEPTUAL_BYTES = 32  # 256 bits per hash
SPEC_METADATA = b"embedding_spec"
Content = Literal["pooled", "grid", "tokens"]
CAPTION_DTYPE: Dtype = "float16"


@dataclass(frozen=True)
class EmbeddingSpec:
    """Identity and shape of the vectors in a set of shards."""

    backbone: str
    """Name of the backbone, for example dinov2-vits14-reg."""
    digest: str
    """sha256 of the backbone's weights."""
    description: str
    """One line on what the backbone is and how it was trained."""
    image_size: int
    """Side of the square crop that the backbone saw, in pixels."""
    dim: int
    """Width of every token."""
    num_registers: int
    """Registers per row, as stored."""
    grid: tuple[int, int]
    """Rows and columns of patches, as stored; (1, 1) for pooled."""
    content: Content
    """pooled: CLS and the mean of the patches; grid: CLS, registers and a small grid of pooled
    patches; tokens: all tokens of the backbone.
    """
    dtype: Dtype
    """Number format of CLS, registers and patches."""
    caption_encoder: str
    """Name of the caption encoder; empty if there is none."""
    caption_dim: int
    """Width of the caption embedding; 0 if there is none."""
    num_hashes: int = 0
    """Perceptual hashes per row: of the image, then of its altered forms; 0 if there are none."""

    def __post_init__(self) -> None:
        if self.content == "pooled" and (self.num_registers, self.grid) != (0, (1, 1)):
            raise ValueError(
                f"pooled embeddings with {self.num_registers} registers and grid {self.grid}: "
                "pooled means no registers and a (1, 1) grid; use content=grid or content=tokens "
                "to keep more"
            )

    @classmethod
    def for_content(
        cls,
        geometry: Geometry,
        content: Content,
        grid: int,
        *,
        dtype: Dtype = "float16",
        backbone: str = "",
        digest: str = "",
        description: str = "",
        caption_encoder: str = "",
        caption_dim: int = 0,
        num_hashes: int = 0,
    ) -> "EmbeddingSpec":
        """The spec of a content, for a backbone with this geometry.

        `grid` is the side of the patch grid, which only the content "grid" uses. Raises ValueError
        for a grid that is finer than the backbone's.
        """
        if content == "grid" and grid > min(geometry.grid):
            raise ValueError(
                f"grid={grid} is finer than the backbone's {geometry.grid}: lower it, use "
                "content=tokens, or raise backbone.image_size"
            )

        grids: dict[Content, tuple[int, int]] = {
            "pooled": (1, 1),
            "grid": (grid, grid),
            "tokens": geometry.grid,
        }

        return cls(
            backbone=backbone,
            digest=digest,
            description=description,
            image_size=geometry.image_size,
            dim=geometry.dim,
            num_registers=0 if content == "pooled" else geometry.num_registers,
            grid=grids[content],
            content=content,
            dtype=dtype,
            caption_encoder=caption_encoder,
            caption_dim=caption_dim,
            num_hashes=num_hashes,
        )

    @property
    def num_image_tokens(self) -> int:
        """Number of tokens of one image, as stored: CLS, registers and patches."""
        return 1 + self.num_registers + self.grid[0] * self.grid[1]

    def num_tokens(self, column: str) -> int:
        """Tokens per row in one vector column; a caption embedding counts as one."""
        return {
            CLS: 1,
            REGISTERS: self.num_registers,
            PATCHES: self.grid[0] * self.grid[1],
            CAPTION_EMBEDDING: 1,
        }[column]

    def width(self, column: str) -> int:
        """Width of one token of a vector column."""
        return self.caption_dim if column == CAPTION_EMBEDDING else self.dim

    def dtype_of(self, column: str) -> Dtype:
        """Number format of a vector column."""
        return CAPTION_DTYPE if column == CAPTION_EMBEDDING else self.dtype

    def vector_columns(self) -> tuple[str, ...]:
        """The vector columns that are present, in the order of the schema."""
        # A column without tokens, or of width 0, is left out.
        columns = (CLS, REGISTERS, PATCHES, CAPTION_EMBEDDING)
        return tuple(column for column in columns if self.num_tokens(column) * self.width(column))

    def row_bytes(self) -> int:
        """Bytes of the vectors of one row, by which record batches and plans are sized."""
        total = 0
        for column in self.vector_columns():
            itemsize = STORED_TYPES[self.dtype_of(column)].itemsize
            scale_bytes = 4 if self.dtype_of(column) == "int8" else 0
            total += self.num_tokens(column) * (self.width(column) * itemsize + scale_bytes)
        return total


def scale_column(column: str) -> str:
    """Name of the column with the int8 scales of a vector column."""
    return f"{column}_scale"


def arrow_schema(spec: EmbeddingSpec) -> pa.Schema:
    """The Arrow schema of a shard: columns in a fixed order, the spec as JSON in its metadata."""
    fields = [
        pa.field(KEY, pa.string(), nullable=False),
        pa.field(SOURCE, pa.string(), nullable=False),
        pa.field(CAPTIONS, pa.list_(pa.string()), nullable=False),
    ]
    for column in spec.vector_columns():
        fields += _vector_fields(spec, column)

    # All hashes of a row are one value of fixed size, so that a column is one buffer of bytes.
    fields += [pa.field(name, pa.uint64(), nullable=False) for name in HASHES]
    if spec.num_hashes:
        fields.append(
            pa.field(PERCEPTUAL_HASH, pa.binary(PERCEPTUAL_BYTES * spec.num_hashes), nullable=False)
        )

    fields.append(pa.field(THUMBNAIL, pa.binary(), nullable=False))
    return pa.schema(fields, metadata={SPEC_METADATA: json.dumps(asdict(spec), sort_keys=True)})


def _vector_fields(spec: EmbeddingSpec, column: str) -> list[pa.Field]:
    """The field of a vector column, and that of its scales for int8."""
    # Fixed-size lists of values that are not null lie in one buffer, which NumPy views directly.
    num_tokens = spec.num_tokens(column)
    item = pa.field(
        "item", pa.from_numpy_dtype(STORED_TYPES[spec.dtype_of(column)]), nullable=False
    )
    fields = [pa.field(column, pa.list_(item, num_tokens * spec.width(column)), nullable=False)]
    if spec.dtype_of(column) == "int8":
        scale = pa.list_(pa.field("item", pa.float32(), nullable=False), num_tokens)
        fields.append(pa.field(scale_column(column), scale, nullable=False))
    return fields


def spec_from_dict(fields: dict) -> EmbeddingSpec:
    """The spec from its `asdict` after JSON, which turns tuples into lists."""
    return EmbeddingSpec(**{**fields, "grid": tuple(fields["grid"])})


def spec_of(schema: pa.Schema) -> EmbeddingSpec:
    """The spec in the metadata of a shard's schema; raises ValueError if there is none."""
    metadata = schema.metadata or {}
    if SPEC_METADATA not in metadata:
        raise ValueError(
            f"Arrow schema without metadata {SPEC_METADATA.decode()!r} (columns {schema.names}): "
            "embedding shards carry it; point to a folder that the embed step wrote"
        )
    return spec_from_dict(json.loads(metadata[SPEC_METADATA]))


def record_batch(spec: EmbeddingSpec, columns: Mapping[str, Any]) -> pa.RecordBatch:
    """Rows as a record batch.

    `columns` maps every column to its values. Vectors are float32 "n t d" (caption embeddings
    "n d"), and are encoded here.
    """
    schema = arrow_schema(spec)
    values = dict(columns)
    for name in spec.vector_columns():
        vectors = np.asarray(values[name], np.float32)
        tokens = vectors.reshape(len(vectors), spec.num_tokens(name), spec.width(name))
        values[name], scale = encode_tokens(tokens, spec.dtype_of(name))
        if scale is not None:
            values[scale_column(name)] = scale
    arrays = [_arrow_array(values[field.name], field.type) for field in schema]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _arrow_array(values: Any, kind: pa.DataType) -> pa.Array:
    # NumPy's memory becomes Arrow's buffer, without a Python object per value.
    if pa.types.is_fixed_size_binary(kind):
        data = np.ascontiguousarray(values).reshape(-1)
        return pa.FixedSizeBinaryArray.from_buffers(
            kind, data.nbytes // kind.byte_width, [None, pa.py_buffer(data)]
        )
    if pa.types.is_fixed_size_list(kind):
        flat = pa.array(np.ascontiguousarray(values).reshape(-1), kind.value_type)
        return pa.FixedSizeListArray.from_arrays(flat, type=kind)
    return pa.array(values, kind)
