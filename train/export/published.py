"""The published dino.txt weights, in and out: state dicts of head and text encoder, by name.

The head's blocks are `block_list.N` in DINOv2's release and `blocks.N` in DINOv3's; both are read,
and either can be written. DINOv3's release holds both parts in one file, under the names of the
whole model. The logit scale is not read: the model gets the initial one, which matters only if it
is trained further.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from sentencepiece import sentencepiece_model_pb2
from torch import Tensor

from curation.shards.schema import EmbeddingSpec, spec_from_dict
from train.config import ModelConfig, TextConfig, VisionConfig
from train.export.folder import LoadedModel, load_model
from train.export.names import CONFIG
from train.export.subject import Subject
from train.model import HEAD_DIM, DinoTxt, LogitScale, num_heads
from train.tokenizer import SentencePieceTokenizer, load_tokenizer

Weights = dict[str, Tensor]
EXPORT_RECORD = "record.json"
HEAD_FILE = "dinotxt_vision_head.pth"
TEXT_FILE = "dinotxt_text_encoder.pth"
HEAD_PREFIX = "visual_model.head."
TEXT_PREFIX = "text_model."
NOT_READ = ("visual_model.backbone.", "logit_scale", "logit_bias")
"""Parts of a whole-model file that are not read: the backbone comes from its own weights."""
SIZES_FROM = (
    "backbone.token_embedding.weight",
    "backbone.positional_embedding",
    "head.linear_projection.weight",
    "ln_final.weight",
)
# Our names, as patterns, and the release's. The first pattern that matches wins.
HEAD_NAMES = (
    (r"vision\.norm\.", "ln_final."),
    (r"vision\.blocks\.(\d+)\.attention_norm\.", r"block_list.\1.norm1."),
    (r"vision\.blocks\.(\d+)\.mlp_norm\.", r"block_list.\1.norm2."),
    (r"vision\.blocks\.(\d+)\.attention\.", r"block_list.\1.attn."),
    (r"vision\.blocks\.(\d+)\.attention_scale$", r"block_list.\1.ls1.gamma"),
    (r"vision\.blocks\.(\d+)\.mlp_scale$", r"block_list.\1.ls2.gamma"),
    (r"vision\.blocks\.(\d+)\.mlp\.", r"block_list.\1.mlp."),
)
TEXT_NAMES = (
    (r"text\.token_embedding\.", "backbone.token_embedding."),
    (r"text\.position_embedding$", "backbone.positional_embedding"),
    (r"text\.norm\.", "backbone.ln_final."),
    (r"text\.projection\.", "head.linear_projection."),
    (r"text\.blocks\.(\d+)\.attention", r"backbone.blocks.\1.attention"),
    (r"text\.blocks\.(\d+)\.mlp_norm\.", r"backbone.blocks.\1.ffn_norm."),
    (r"text\.blocks\.(\d+)\.mlp\.", r"backbone.blocks.\1.feed_forward."),
)


def read_model(folder: Path) -> LoadedModel:
    """The model of a folder of ours, or of one with published dino.txt files and a tokenizer."""
    return load_model(folder) if (folder / CONFIG).is_file() else load_published(folder)


def read_published(head: Path, text: Path) -> DinoTxt:
    """The model of two published files, or of one that holds both parts, in evaluation mode."""
    if head == text:
        return from_published(*_parts(head))
    states = [torch.load(path, map_location="cpu", weights_only=True) for path in (head, text)]
    return from_published(*states)


def _parts(file: Path) -> tuple[Weights, Weights]:
    """Head and text encoder of one whole-model file, without the prefixes of their names."""
    whole = torch.load(file, map_location="cpu", weights_only=True)
    unknown = [name for name in whole if not name.startswith((HEAD_PREFIX, TEXT_PREFIX, *NOT_READ))]
    if unknown:
        raise ValueError(
            f"{file.name} holds {unknown[0]} ({len(unknown)} such in all): in one file with both "
            f"parts, names must begin with {HEAD_PREFIX} or {TEXT_PREFIX}; put the release's own "
            "file there"
        )

    head, text = (
        {
            name.removeprefix(prefix): tensor
            for name, tensor in whole.items()
            if name.startswith(prefix)
        }
        for prefix in (HEAD_PREFIX, TEXT_PREFIX)
    )

    return head, text


def write_published(
    model: DinoTxt, head: Path, text: Path, blocks: Literal["block_list", "blocks"] = "block_list"
) -> None:
    """Write a model as the two published files, with the names of DINOv2's or DINOv3's blocks."""
    for state, path in zip(to_published(model.state_dict(), blocks), (head, text), strict=True):
        torch.save(state, path)


def write_published_folder(folder: Path, subject: Subject) -> None:
    """Write a model as the two published files beside its tokenizer.

    The release's code reads a caption's feature at its largest token id. So a sentencepiece
    vocabulary is written with end-of-text as its last id, and the token embeddings in the same
    order. ValueError if the published form cannot express the model.
    """
    loaded = subject.loaded
    _check_form(loaded)
    head, text = to_published(loaded.model.state_dict())

    if isinstance(loaded.tokenizer, SentencePieceTokenizer):
        order = last_id_first_order(loaded.tokenizer)
        text["backbone.token_embedding.weight"] = text["backbone.token_embedding.weight"][order]
        reorder(loaded.tokenizer, order).save(folder)
    else:
        loaded.tokenizer.save(folder)

    torch.save(head, folder / HEAD_FILE)
    torch.save(text, folder / TEXT_FILE)


def _check_form(loaded: LoadedModel) -> None:
    """ValueError if the published form cannot express the model."""
    config = loaded.model.config
    if config.vision.pooling != "concat":
        raise ValueError(
            f"published files cannot hold a model with pooling {config.vision.pooling!r}: their "
            "reader uses concat(CLS, patch mean); export another format, or train with "
            "pooling=concat"
        )
    if config.vision.blocks == 0:
        raise ValueError(
            "published files cannot hold a model with 0 head blocks: their reader then has no "
            "final norm, which this model has; export another format, or train with at least one "
            "block"
        )
    if loaded.spec.content != "tokens":
        raise ValueError(
            f"published files cannot hold a model of {loaded.spec.content} embeddings: their "
            "reader passes all patches, and the model was not trained on them; export another "
            "format, or train on content=tokens"
        )

    _check_heads("text", config.text.width, config.text.heads)
    _check_heads("vision", loaded.spec.dim, num_heads(loaded.spec.dim))


def _check_heads(side: str, width: int, heads: int) -> None:
    if width != heads * HEAD_DIM:
        raise ValueError(
            f"published files cannot hold {side} width {width} with {heads} heads: their reader "
            f"uses one head per {HEAD_DIM} channels; export another format, or train with such a "
            "width"
        )


def last_id_first_order(tokenizer: SentencePieceTokenizer) -> list[int]:
    """Old ids in their new order, with end-of-text last: [0, 2, 3, 1] if it is 1 of four ids."""
    others = [index for index in range(tokenizer.vocab_size) if index != tokenizer.end_of_text]
    return [*others, tokenizer.end_of_text]


def reorder(tokenizer: SentencePieceTokenizer, order: Sequence[int]) -> SentencePieceTokenizer:
    """The same vocabulary with its pieces in another order; a piece's position is its id."""
    proto = sentencepiece_model_pb2.ModelProto.FromString(tokenizer.model)  # type: ignore[attr-defined]
    pieces = [proto.pieces[index] for index in order]
    del proto.pieces[:]
    proto.pieces.extend(pieces)
    return SentencePieceTokenizer(proto.SerializeToString())


def load_published(folder: Path) -> LoadedModel:
    """The model of a folder with published files and a tokenizer.

    The files match `*head*.pth` and `*text*.pth`; one file may match both. They do not name their
    backbone. Our exports name it in the record beside them; without a record, tokens are assumed to
    be those of the release: 224 pixels, 4 registers. ValueError if files are missing, ambiguous, or
    of two models.
    """
    heads = sorted(folder.glob("*head*.pth"))
    texts = sorted(folder.glob("*text*.pth"))
    if len(heads) != 1 or len(texts) != 1:
        raise ValueError(
            f"{folder} has the weights {[path.name for path in (*heads, *texts)]}: one head "
            "(*head*.pth) and one text encoder (*text*.pth), or one file with both, are required, "
            "beside the tokenizer's files"
        )

    model = read_published(heads[0], texts[0])
    tokenizer = load_tokenizer(folder)
    if tokenizer.vocab_size != model.text.token_embedding.num_embeddings:
        raise ValueError(
            f"the tokenizer in {folder} has {tokenizer.vocab_size} pieces, the text encoder "
            f"{model.text.token_embedding.num_embeddings}: they must belong to one model; put its "
            "own tokenizer there"
        )

    if (folder / EXPORT_RECORD).is_file():
        spec = spec_from_dict(json.loads((folder / EXPORT_RECORD).read_text())["embeddings"])
    else:
        spec = EmbeddingSpec(
            backbone="",
            digest="",
            description="published dino.txt weights",
            image_size=224,
            dim=model.image_dim,
            num_registers=4,
            grid=(16, 16),
            content="tokens",
            dtype="float16",
            caption_encoder="",
            caption_dim=0,
        )

    return LoadedModel(model, tokenizer, spec)


def from_published(head: Weights, text: Weights) -> DinoTxt:
    """The model of two published state dicts, whose shapes give its sizes.

    ValueError if a tensor is missing or unknown.
    """
    # DINOv3's name of the head's blocks becomes DINOv2's.
    head = {re.sub(r"^blocks\.", "block_list.", name): tensor for name, tensor in head.items()}
    published = {**head, **text}
    _check_names(set(SIZES_FROM), published)

    # The model is built without memory, and the tensors that were read become its own (`assign`).
    with torch.device("meta"):
        vocab_size = text["backbone.token_embedding.weight"].shape[0]
        model = DinoTxt(published_config(head, text), vocab_size, _dim(head))

    names = {
        name: published_name(name)
        for name in model.state_dict()
        if not name.startswith("logit_scale")
    }
    _check_names(set(names.values()), published, is_complete=True)

    state = {name: published[theirs].float() for name, theirs in names.items()}
    model.load_state_dict({**state, "logit_scale.log": LogitScale().log.detach()}, assign=True)

    return model.eval()


def _check_names(required: set[str], published: Weights, is_complete: bool = False) -> None:
    """ValueError if a required tensor is missing or, for a complete list, one is unknown."""
    missing = sorted(required - set(published))
    unknown = sorted(set(published) - required) if is_complete else []
    if missing or unknown:
        raise ValueError(
            f"not dino.txt weights: missing {missing[:5]} ({len(missing)}), unknown {unknown[:5]} "
            f"({len(unknown)}); pass the head's file first, then the text encoder's"
        )


def to_published(
    state: Weights, blocks: Literal["block_list", "blocks"] = "block_list"
) -> tuple[Weights, Weights]:
    """Head and text encoder of a model's state dict, under published names."""
    head = {
        published_name(name): tensor for name, tensor in state.items() if name.startswith("vision.")
    }
    text = {
        published_name(name): tensor for name, tensor in state.items() if name.startswith("text.")
    }

    head = {re.sub(r"^block_list\.", f"{blocks}.", name): tensor for name, tensor in head.items()}

    return head, text


def published_name(name: str) -> str:
    """The name of one of our tensors in DINOv2's release."""
    for pattern, replacement in (*HEAD_NAMES, *TEXT_NAMES):
        if re.match(pattern, name):
            return re.sub(f"^{pattern}", replacement, name)
    raise ValueError(
        f"{name} has no published counterpart: only the vision head and the text encoder were "
        "published"
    )


def published_config(head: Weights, text: Weights) -> ModelConfig:
    """The sizes of the model, from the shapes and the number of published tensors."""
    context, width = text["backbone.positional_embedding"].shape
    layers = sum(
        bool(re.fullmatch(r"backbone\.blocks\.\d+\.attention\.qkv\.weight", name)) for name in text
    )
    blocks = sum(bool(re.fullmatch(r"block_list\.\d+\.attn\.qkv\.weight", name)) for name in head)

    # A text feature twice as wide as a token is aligned with CLS and the patch mean, side by side.
    num_features = text["head.linear_projection.weight"].shape[0]
    pooling: Literal["concat", "cls"] = "concat" if num_features == 2 * _dim(head) else "cls"

    # The number of heads leaves no trace in shapes: the release has one per 64 channels.
    text_heads = max(1, width // HEAD_DIM)

    return ModelConfig(
        TextConfig(width, layers, text_heads, context), VisionConfig(blocks=blocks, pooling=pooling)
    )


def _dim(head: Weights) -> int:
    return head["ln_final.weight"].shape[0]
