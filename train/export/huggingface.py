"""A whole model as a Hugging Face folder, from image processor and tokenizer to the model card.

    model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)

The weights keep the names of our model, so that only the modeling file gives them a meaning.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import normalize

from cluster.files import sha256_file, write_atomic
from curation.encoders.backbone import Backbone
from curation.encoders.efficientnet import Block, Convolution, EfficientNetLite
from curation.encoders.library import TokenEncoder
from curation.encoders.weights import HUB_FILE
from train.export.card import model_card
from train.export.folder import LoadedModel
from train.export.names import CONFIG, WEIGHTS
from train.export.probe import Probe
from train.export.subject import Subject
from train.model import num_heads
from train.tokenizer import SentencePieceTokenizer

SHIPPED = ("configuration_dinotxt", "backbone_dinotxt", "modeling_dinotxt", "processing_dinotxt")
TOKENIZATION = "tokenization_dinotxt"
PROCESSOR = "CLIPProcessor"  # of transformers: it pairs any image processor with any tokenizer


def write_huggingface(folder: Path, subject: Subject) -> None:
    """Fill a folder that the Auto classes of transformers read. ValueError without a backbone."""
    backbone = subject.whole_backbone("the huggingface format")
    config = huggingface_config(subject)
    write_atomic(folder / CONFIG, _json(config))

    # With a reference, the backbone's weights are not in the file: the modeling code fetches them.
    has_copy = subject.backbone_form == "copy"
    weights = {
        name: tensor.detach().contiguous()
        for name, tensor in whole_state(subject.loaded, backbone).items()
    }
    stored = {
        name: tensor
        for name, tensor in weights.items()
        if has_copy or not name.startswith("backbone.")
    }
    save_file(stored, folder / WEIGHTS, metadata={"format": "pt"})  # transformers demands "format"

    for module in SHIPPED:
        _copy_code(module, folder)

    _write_tokenizer(folder, subject.loaded)
    write_atomic(folder / "preprocessor_config.json", _json(processor_config(backbone)))
    _write_sentence_transformers(folder)
    write_atomic(folder / "README.md", model_card(subject, backbone))


def whole_state(loaded: LoadedModel, backbone: Backbone) -> dict[str, Tensor]:
    """Every tensor of the whole model, under the names of the modeling file."""
    state = {f"backbone.{name}": tensor for name, tensor in backbone.encoder.state_dict().items()}
    return state | loaded.model.state_dict()


def _copy_code(module: str, folder: Path) -> None:
    shutil.copyfile(Path(__file__).parent / "shipped" / f"{module}.py", folder / f"{module}.py")


def _json(fields: dict[str, Any]) -> str:
    return json.dumps(fields, indent=1, sort_keys=True) + "\n"


def _write_tokenizer(folder: Path, loaded: LoadedModel) -> None:
    fields: dict[str, Any] = {"tokenizer_class": "CLIPTokenizer"}
    if isinstance(loaded.tokenizer, SentencePieceTokenizer):
        _copy_code(TOKENIZATION, folder)
        name = "DinoTxtTokenizer"
        fields = {
            "tokenizer_class": name,
            "auto_map": {"AutoTokenizer": [f"{TOKENIZATION}.{name}", None]},
        }

    loaded.tokenizer.save(folder)
    fields |= {"model_max_length": loaded.model.config.text.context, "processor_class": PROCESSOR}
    write_atomic(folder / "tokenizer_config.json", _json(fields))


def _write_sentence_transformers(folder: Path) -> None:
    """The files with which `SentenceTransformer(folder, trust_remote_code=True)` embeds texts."""
    package = "sentence_transformers.base.modules"
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": f"{package}.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Normalize", "type": f"{package}.Normalize"},
    ]
    text = {
        "modality_config": {"text": {"method": "get_text_features", "method_output_name": None}},
        "module_output_name": "sentence_embedding",
    }

    # The second module makes the vectors of `encode` unit-norm, as in training.
    write_atomic(folder / "modules.json", json.dumps(modules, indent=1) + "\n")
    write_atomic(folder / "sentence_bert_config.json", _json(text))
    (folder / "1_Normalize").mkdir()
    write_atomic(folder / "1_Normalize" / CONFIG, "{}\n")


def processor_config(backbone: Backbone) -> dict[str, Any]:
    """The image processor's settings under the names that transformers uses."""
    side = backbone.geometry.image_size
    name = "DinoTxtImageProcessor"
    return {
        "image_processor_type": name,
        "auto_map": {"AutoImageProcessor": f"processing_dinotxt.{name}"},
        "processor_class": PROCESSOR,
        "size": {"shortest_edge": side},
        "crop_size": {"height": side, "width": side},
        "image_mean": list(backbone.family.mean),
        "image_std": list(backbone.family.std),
    }


def huggingface_config(subject: Subject) -> dict[str, Any]:
    """The fields of `DinoTxtConfig`, and the names by which transformers finds the code."""
    backbone = subject.whole_backbone("the huggingface format")
    model = subject.loaded.model
    modeling = "modeling_dinotxt.DinoTxtModel"

    return {
        "model_type": "dinotxt",
        "architectures": ["DinoTxtModel"],
        "auto_map": {
            "AutoConfig": "configuration_dinotxt.DinoTxtConfig",
            "AutoModel": modeling,
            "AutoModelForZeroShotImageClassification": modeling,
        },
        "dtype": "float32",
        "projection_dim": model.text.projection.out_features,
        "logit_scale_init_value": model.logit_scale.log.item(),
        "text_config": text_config(subject.loaded),
        "vision_config": vision_config(subject, backbone),
    }


def text_config(loaded: LoadedModel) -> dict[str, Any]:
    """The text encoder's sizes, and the special tokens that the model must know."""
    text = loaded.model.config.text
    tokenizer = loaded.tokenizer

    # If the vocabulary has a begin-of-text, it is the first token of an empty caption.
    has_start = not isinstance(tokenizer, SentencePieceTokenizer)

    return {
        "vocab_size": tokenizer.vocab_size,
        "hidden_size": text.width,
        "num_hidden_layers": text.layers,
        "num_attention_heads": text.heads,
        "max_position_embeddings": text.context,
        "eos_token_id": tokenizer.end_of_text,
        "bos_token_id": tokenizer.encode([""], text.context)[0][0] if has_start else None,
    }


def vision_config(subject: Subject, backbone: Backbone) -> dict[str, Any]:
    """The head's sizes, the format of the tokens that it was trained on, and its backbone."""
    loaded = subject.loaded
    spec = loaded.spec
    vision = loaded.model.config.vision
    weights = loaded.model.state_dict()

    return {
        "hidden_size": spec.dim,
        "num_hidden_layers": vision.blocks,
        "num_attention_heads": num_heads(spec.dim),
        "intermediate_size": weights["vision.blocks.0.mlp.w1.bias"].numel() if vision.blocks else 0,
        "pooling": vision.pooling,
        "content": spec.content,
        "num_registers": spec.num_registers,
        "backbone_registers": backbone.geometry.num_registers,
        "grid": list(spec.grid),
        "image_size": spec.image_size,
        "patch_size": backbone.geometry.patch_size,
        "backbone": backbone.name,
        "backbone_digest": spec.digest,
        "backbone_license": backbone.family.license,
        "backbone_config": backbone_config(backbone),
        "backbone_reference": backbone_reference(subject, backbone)
        if subject.backbone_form == "reference"
        else None,
    }


def backbone_config(backbone: Backbone) -> dict[str, Any]:
    """The sizes from which the shipped code builds the backbone."""
    encoder = backbone.encoder

    # A transformer has its own config in transformers, of which only the differences count. The
    # convolutional stand-in has none: its sizes are read off its layers.
    if isinstance(encoder, TokenEncoder):
        config: dict[str, Any] = encoder.model.config.to_diff_dict()
        unused = ("architectures", "dtype", "transformers_version")
        return {name: value for name, value in config.items() if name not in unused}

    assert isinstance(encoder, EfficientNetLite)
    blocks = [block for block in encoder.blocks if isinstance(block, Block)]
    return {
        "model_type": "efficientnet_lite",
        "stem": _sizes(encoder.stem),
        "blocks": [
            {
                "layers": [
                    _sizes(layer) for layer in block.layers if isinstance(layer, Convolution)
                ],
                "has_residual": block.residual,
            }
            for block in blocks
        ],
    }


def _sizes(layer: Convolution) -> list[int]:
    """Channels in and out, kernel, stride, groups."""
    # A grouped convolution stores the input channels of one group only.
    dim_out, per_group, kernel, _ = layer.weight.shape
    return [per_group * layer.groups, dim_out, kernel, layer.stride, layer.groups]


def backbone_reference(subject: Subject, backbone: Backbone) -> dict[str, str]:
    """Repository, file, revision and digest of public weights.

    ValueError if the weights that the model was trained with are not the ones from the hub.
    """
    spec = subject.loaded.spec
    repository = backbone.family.members[backbone.name].hub_name
    file = huggingface_hub.try_to_load_from_cache(repository, HUB_FILE) if repository else None

    # A name and a revision are a reference only if they lead to the same bytes as in training.
    if not isinstance(file, str) or sha256_file(Path(file)) != spec.digest:
        raise ValueError(
            f"--backbone reference: the weights of {backbone.name} ({spec.digest[:12]}) are not a "
            f"file of the hub's cache ({repository or 'no repository'}/{HUB_FILE}); leave "
            "--backbone out, and the folder holds a copy"
        )

    # In the hub's cache, a file is in a folder that is named after its revision.
    assert repository is not None
    revision = Path(file).parent.name
    return {"repository": repository, "file": HUB_FILE, "revision": revision, "sha256": spec.digest}


@torch.inference_mode()
def huggingface_features(folder: Path, probe: Probe) -> dict[str, Tensor]:
    """Unit-norm features of the folder, as a user of transformers gets them."""
    transformers.utils.logging.disable_progress_bar()
    model = transformers.AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
    processor = transformers.AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    inputs = processor(
        text=list(probe.captions),
        images=list(probe.images),
        padding=True,
        truncation=True,
        return_tensors="pt",
    )

    output = model(**inputs)
    dense = normalize(model.get_patch_features(inputs["pixel_values"]), dim=-1)

    return {
        "text": output.text_embeds,
        "image": output.image_embeds,
        "patches": output.patch_embeds,
        "dense": dense,
    }
