"""A model as a Hugging Face folder: weights, config, the modeling file and the tokenizer, loadable offline.

    model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)

The weights keep our names, so that the modeling file alone says what they mean.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor

from cluster.files import write_atomic
from curation.encoders.backbone import Features
from train.export.folder import LoadedModel
from train.export.names import CONFIG, WEIGHTS
from train.model import num_heads
from train.tokenizer import SentencePieceTokenizer

MODELING, TOKENIZATION = "modeling_dinotxt", "tokenization_dinotxt"


def write_huggingface(folder: Path, loaded: LoadedModel) -> None:
    """Fill a folder that `AutoModel` and `AutoTokenizer` read."""
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in loaded.model.state_dict().items()}
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    _copy_code(MODELING, folder)
    context = loaded.model.config.text.context
    if isinstance(loaded.tokenizer, SentencePieceTokenizer):
        _copy_code(TOKENIZATION, folder)
        name = "DinoTxtTokenizer"
        words = {"tokenizer_class": name, "auto_map": {"AutoTokenizer": [f"{TOKENIZATION}.{name}", None]}}
    else:
        words = {"tokenizer_class": "CLIPTokenizer"}
    loaded.tokenizer.save(folder)
    write_atomic(folder / "tokenizer_config.json", _json({**words, "model_max_length": context}))
    write_atomic(folder / CONFIG, _json(huggingface_config(loaded)))


def _copy_code(module: str, folder: Path) -> None:
    shutil.copyfile(Path(__file__).parent / "shipped" / f"{module}.py", folder / f"{module}.py")


def _json(fields: dict) -> str:
    return json.dumps(fields, indent=1, sort_keys=True) + "\n"


def huggingface_config(loaded: LoadedModel) -> dict:
    """Sizes under the names of `DinoTxtConfig`, and where transformers finds the code."""
    text, vision, spec = loaded.model.config.text, loaded.model.config.vision, loaded.spec
    weights = loaded.model.state_dict()
    return {
        "model_type": "dinotxt",
        "architectures": ["DinoTxtModel"],
        "auto_map": {"AutoConfig": f"{MODELING}.DinoTxtConfig", "AutoModel": f"{MODELING}.DinoTxtModel"},
        "dtype": "float32",
        "vocab_size": loaded.tokenizer.vocab_size,
        "context": text.context,
        "text_width": text.width,
        "text_layers": text.layers,
        "text_heads": text.heads,
        "image_dim": spec.dim,
        "vision_blocks": vision.blocks,
        "vision_heads": num_heads(spec.dim),
        "vision_hidden": weights["vision.blocks.0.mlp.w1.bias"].numel() if vision.blocks else 0,
        "pooling": vision.pooling,
        "backbone": spec.backbone,
        "backbone_digest": spec.digest,
        "image_size": spec.image_size,
        "embedding_content": spec.content,
        "num_registers": spec.num_registers,
        "patch_grid": list(spec.grid),
    }


@torch.inference_mode()
def huggingface_features(folder: Path, captions: Sequence[str], tokens: Features) -> dict[str, Tensor]:
    """Unit-norm features of the folder as a user of transformers gets them."""
    transformers.utils.logging.disable_progress_bar()
    model = transformers.AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    words = tokenizer(list(captions), padding=True, truncation=True, return_tensors="pt")
    output = model(words["input_ids"], words["attention_mask"], **tokens._asdict())
    return {"text": output.text_embeds, "image": output.image_embeds, "patches": output.patch_embeds}
