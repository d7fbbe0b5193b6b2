"""The text encoder as mteb takes models: the members of its protocol, batches as its loaders make
them, and cosines.
"""

from typing import Any, Protocol, runtime_checkable

import numpy as np
import pytest
import torch
from colors import ColorEncoder
from torch.utils.data import DataLoader

from evaluate.mteb_encoder import MtebEncoder


@runtime_checkable
class EncoderProtocol(Protocol):
    """The members of mteb's own (2.26.24, mteb/models/models_protocols.py)."""

    def encode(
        self,
        inputs: Any,
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        prompt_type: Any = None,
        **kwargs: Any,
    ) -> Any: ...

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any: ...

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any: ...

    @property
    def mteb_model_meta(self) -> Any: ...


TEXTS = [f"so {color}" for color in ("black", "red", "blue", "white", "cyan")]


def test_batches_of_a_loader_become_the_vectors_of_the_encoder_in_order() -> None:
    model = MtebEncoder(ColorEncoder(), meta="mine")
    assert isinstance(model, EncoderProtocol)
    assert model.mteb_model_meta == "mine"
    loader = DataLoader([{"text": text, "id": "1"} for text in TEXTS], batch_size=2)
    vectors = model.encode(
        loader, task_metadata=None, hf_split="test", hf_subset="default", batch_size=32
    )
    assert isinstance(vectors, np.ndarray)
    np.testing.assert_array_equal(vectors, ColorEncoder().encode_text(TEXTS).numpy())


@pytest.mark.parametrize("kind", [np.asarray, torch.tensor])
def test_similarities_are_cosines_of_vectors_of_any_length(kind: Any) -> None:
    model = MtebEncoder(ColorEncoder())
    first = kind([[3.0, 0.0], [1.0, 1.0]])
    second = kind([[0.0, 2.0], [5.0, 5.0]])
    half = 0.5**0.5
    expected = torch.tensor([[0, half], [half, 1]])
    torch.testing.assert_close(model.similarity(first, second), expected)
    torch.testing.assert_close(model.similarity_pairwise(first, second), torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(model.similarity(first[0], second), expected[:1])


def test_a_task_without_texts_is_refused() -> None:
    with pytest.raises(ValueError, match="a batch of mteb has image, but no text"):
        MtebEncoder(ColorEncoder()).encode([{"image": []}])
