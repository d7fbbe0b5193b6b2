"""The published dino.txt weights, in and out: two state dicts, a head and a text encoder, mapped by name.

The head's blocks are `block_list.N` in the DINOv2 release and `blocks.N` in DINOv3's; both are read, either is
written. Neither file carries the logit scale: a model read from them has the initial one, which matters only when it
is trained on.
"""

import json
import re
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from curation.shards.schema import EmbeddingSpec, spec_from_dict
from train.config import ModelConfig, TextConfig, VisionConfig
from train.export.folder import LoadedModel
from train.model import HEAD_DIM, DinoTxt, LogitScale, num_heads
from train.tokenizer import load_tokenizer

State = dict[str, Tensor]
RECORD = "record.json"
HEAD_FILE, TEXT_FILE = "dinotxt_vision_head.pth", "dinotxt_text_encoder.pth"
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


def read_published(head: Path, text: Path) -> DinoTxt:
    """The model of two published files, in evaluation mode."""
    states = [torch.load(path, map_location="cpu", weights_only=True) for path in (head, text)]
    return from_published(*states)


def write_published(
    model: DinoTxt, head: Path, text: Path, blocks: Literal["block_list", "blocks"] = "block_list"
) -> None:
    """Write a model as the two published files, in the key style of DINOv2's release or DINOv3's."""
    for state, path in zip(to_published(model.state_dict(), blocks), (head, text), strict=True):
        torch.save(state, path)


def write_published_folder(folder: Path, loaded: LoadedModel) -> None:
    """Write a model as the two published files beside its tokenizer; ValueError when their form cannot hold it."""
    config, dim = loaded.model.config, loaded.spec.dim
    if config.vision.pooling != "concat":
        raise ValueError(
            f"pooling {config.vision.pooling!r} in published files: whoever reads them takes concat(CLS, patch mean); "
            "export another format, or train with pooling=concat"
        )
    if loaded.spec.content != "tokens":
        raise ValueError(
            f"a model of {loaded.spec.content} embeddings in published files: whoever reads them gives all "
            "patches, which it was not trained on; export another format, or train on content=tokens"
        )
    for what, width, heads in (("text", config.text.width, config.text.heads), ("vision", dim, num_heads(dim))):
        if width != heads * HEAD_DIM and (what == "text" or config.vision.blocks):
            raise ValueError(
                f"{what} width {width} in published files: whoever reads them takes one head for every {HEAD_DIM} "
                "channels, which this model has not; export another format, or train with such a width"
            )
    write_published(loaded.model, folder / HEAD_FILE, folder / TEXT_FILE)
    loaded.tokenizer.save(folder)


def load_published(folder: Path) -> LoadedModel:
    """The model of a folder with the two published files (`*head*.pth`, `*text*.pth`) and a tokenizer's files.

    The files do not name their backbone: our exports do, in the record beside them; without one its tokens are taken
    to be those of the release: 224 pixels, 4 registers.
    """
    found = [sorted(folder.glob(pattern)) for pattern in ("*head*.pth", "*text*.pth")]
    if [len(files) for files in found] != [1, 1]:
        raise ValueError(
            f"{folder} holds {[path.name for files in found for path in files]}: one head (*head*.pth) and one text "
            "encoder (*text*.pth) are needed, with vocab.json and merges.txt beside them"
        )
    model, tokenizer = read_published(found[0][0], found[1][0]), load_tokenizer(folder)
    if tokenizer.vocab_size != model.text.token_embedding.num_embeddings:
        raise ValueError(
            f"the tokenizer in {folder} has {tokenizer.vocab_size} pieces, the text encoder "
            f"{model.text.token_embedding.num_embeddings}: they must be of one model; put its own tokenizer there"
        )
    spec = EmbeddingSpec(
        "", "", "published dino.txt weights", 224, model.image_dim, 4, (16, 16), "tokens", "float16", "", 0
    )
    if (folder / RECORD).is_file():
        spec = spec_from_dict(json.loads((folder / RECORD).read_text())["embeddings"])
    return LoadedModel(model, tokenizer, spec)


def from_published(head: State, text: State) -> DinoTxt:
    """The model of two published state dicts; its sizes are read off the shapes."""
    head = {re.sub(r"^blocks\.", "block_list.", name): tensor for name, tensor in head.items()}
    with torch.device("meta"):
        model = DinoTxt(published_config(head, text), text["backbone.token_embedding.weight"].shape[0], _dim(head))
    published = {**head, **text}
    names = {name: published_name(name) for name in model.state_dict() if not name.startswith("logit_scale")}
    missing = sorted(set(names.values()) - set(published))
    unknown = sorted(set(published) - set(names.values()))
    if missing or unknown:
        raise ValueError(
            f"not dino.txt weights: missing {missing[:5]} ({len(missing)}), unknown {unknown[:5]} ({len(unknown)}); "
            "give the head file first, then the text encoder's"
        )
    state = {name: published[theirs].float() for name, theirs in names.items()}
    model.load_state_dict({**state, "logit_scale.log": LogitScale().log.detach()}, assign=True)
    return model.eval()


def to_published(state: State, blocks: Literal["block_list", "blocks"] = "block_list") -> tuple[State, State]:
    """Head and text encoder of a model's state dict, by published names."""
    head = {published_name(name): tensor for name, tensor in state.items() if name.startswith("vision.")}
    text = {published_name(name): tensor for name, tensor in state.items() if name.startswith("text.")}
    return {re.sub(r"^block_list\.", f"{blocks}.", name): tensor for name, tensor in head.items()}, text


def published_name(name: str) -> str:
    """What the DINOv2 release calls one of our tensors."""
    for pattern, replacement in (*HEAD_NAMES, *TEXT_NAMES):
        if re.match(pattern, name):
            return re.sub(f"^{pattern}", replacement, name)
    raise ValueError(f"{name} has no published counterpart: only the vision head and the text encoder were published")


def published_config(head: State, text: State) -> ModelConfig:
    """The sizes of published state dicts."""
    context, width = text["backbone.positional_embedding"].shape
    layers = sum(bool(re.fullmatch(r"backbone\.blocks\.\d+\.attention\.qkv\.weight", name)) for name in text)
    blocks = sum(bool(re.fullmatch(r"block_list\.\d+\.attn\.qkv\.weight", name)) for name in head)
    features = text["head.linear_projection.weight"].shape[0]
    pooling: Literal["concat", "cls"] = "concat" if features == 2 * _dim(head) else "cls"
    heads = max(1, width // HEAD_DIM)
    return ModelConfig(TextConfig(width, layers, heads, context), VisionConfig(blocks=blocks, pooling=pooling))


def _dim(head: State) -> int:
    return head["ln_final.weight"].shape[0]
