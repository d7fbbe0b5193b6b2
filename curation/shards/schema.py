"""What an embedding shard holds: column names, the Arrow schema, and the number formats of its
vectors.

The spec travels twice, in the Arrow schema metadata of every shard and in the manifest: a shard
read alone still says which backbone made it. bfloat16 is stored as its 16 bits in uint16 (Arrow has
no such type); int8 has one float32 scale a token.
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
PERCEPTUAL_BYTES = 32
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
    """One line on what the backbone is and was trained on."""
    image_size: int
    """Side of the square crop fed to the backbone, in pixels."""
    dim: int
    """Width of every token."""
    num_registers: int
    """Registers a row, as stored."""
    grid: tuple[int, int]
    """Rows and columns of patches, as stored: (1, 1) when pooled."""
    content: Content
    """pooled: CLS and patch mean; grid: CLS, registers and a small patch grid; tokens: all that the
    backbone gives.
    """
    dtype: Dtype
    """Number format of CLS, registers and patches."""
    caption_encoder: str
    """Name of the caption encoder; empty when there is none."""
    caption_dim: int
    """Width of the caption embedding; 0 when there is none."""
    num_hashes: int = 0
    """Perceptual hashes per row: of the image, then of its altered forms; 0 when there are none."""

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
        """What a content keeps of a backbone's tokens. `grid`: side of the patch grid, for
        content=grid alone.

        ValueError for a grid that is finer than the backbone's.
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
        """CLS, registers and patches of one image, as stored."""
        return 1 + self.num_registers + self.grid[0] * self.grid[1]

    def num_tokens(self, column: str) -> int:
        """Tokens a row in one vector column; a caption embedding counts as one."""
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
        """The vector columns that are present, in schema order."""
        columns = (CLS, REGISTERS, PATCHES, CAPTION_EMBEDDING)
        return tuple(column for column in columns if self.num_tokens(column) * self.width(column))

    def row_bytes(self) -> int:
        """Bytes of vectors in one row: what sizes record batches and plans."""
        total = 0
        for column in self.vector_columns():
            itemsize = STORED_TYPES[self.dtype_of(column)].itemsize
            scale_bytes = 4 if self.dtype_of(column) == "int8" else 0
            total += self.num_tokens(column) * (self.width(column) * itemsize + scale_bytes)
        return total


def scale_column(column: str) -> str:
    """Name of the companion column that holds the int8 scales."""
    return f"{column}_scale"


def arrow_schema(spec: EmbeddingSpec) -> pa.Schema:
    """The Arrow schema of a shard: columns in fixed order, the spec as JSON in its metadata."""
    fields = [
        pa.field(KEY, pa.string(), nullable=False),
        pa.field(SOURCE, pa.string(), nullable=False),
        pa.field(CAPTIONS, pa.list_(pa.string()), nullable=False),
    ]
    for column in spec.vector_columns():
        fields += _vector_fields(spec, column)

    fields += [pa.field(name, pa.uint64(), nullable=False) for name in HASHES]
    if spec.num_hashes:
        fields.append(
            pa.field(PERCEPTUAL_HASH, pa.binary(PERCEPTUAL_BYTES * spec.num_hashes), nullable=False)
        )

    fields.append(pa.field(THUMBNAIL, pa.binary(), nullable=False))
    return pa.schema(fields, metadata={SPEC_METADATA: json.dumps(asdict(spec), sort_keys=True)})


def _vector_fields(spec: EmbeddingSpec, column: str) -> list[pa.Field]:
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
    """The spec whose `asdict` went through JSON."""
    return EmbeddingSpec(**{**fields, "grid": tuple(fields["grid"])})


def spec_of(schema: pa.Schema) -> EmbeddingSpec:
    """The spec in a shard's schema metadata."""
    metadata = schema.metadata or {}
    if SPEC_METADATA not in metadata:
        raise ValueError(
            f"Arrow schema without metadata {SPEC_METADATA.decode()!r} (columns {schema.names}): "
            "embedding shards carry it; point to a folder that the embed step wrote"
        )
    return spec_from_dict(json.loads(metadata[SPEC_METADATA]))


def record_batch(spec: EmbeddingSpec, columns: Mapping[str, Any]) -> pa.RecordBatch:
    """Rows as Arrow: vectors come as float32 "n t d" (caption embeddings "n d") and are encoded
    here.
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
    if pa.types.is_fixed_size_binary(kind):
        data = np.ascontiguousarray(values).reshape(-1)
        return pa.FixedSizeBinaryArray.from_buffers(
            kind, data.nbytes // kind.byte_width, [None, pa.py_buffer(data)]
        )
    if pa.types.is_fixed_size_list(kind):
        flat = pa.array(np.ascontiguousarray(values).reshape(-1), kind.value_type)
        return pa.FixedSizeListArray.from_arrays(flat, type=kind)
    return pa.array(values, kind)
