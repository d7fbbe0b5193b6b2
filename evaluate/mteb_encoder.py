"""The text encoder of a model as `mteb` takes models (Muennighoff et al. 2023, arXiv:2210.07316), to
score it on that library's tasks.

    import mteb
    from evaluate.mteb_encoder import MtebEncoder
    from evaluate.predict import load

    named = {"name": "mine/dinotxt", "revision": "1"}
    meta = mteb.models.ModelMeta.create_empty(named)
    model = MtebEncoder(load("exported/safetensors").encoder, meta)
    mteb.evaluate(model, mteb.get_tasks(["STSBenchmark"]))

`mteb` asks for a protocol and no base class, so that nothing of it is imported here.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor
from torch.nn.functional import normalize

from evaluate.encoder import Encoder
from evaluate.retrieval import encode_texts

Vectors = np.ndarray | Tensor


class MtebEncoder:
    """The `EncoderProtocol` of mteb 2, for texts: ours and open_clip's."""

    def __init__(self, encoder: Encoder, meta: object = None) -> None:
        self._encoder = encoder
        self.mteb_model_meta = meta
        """An mteb.models.ModelMeta. mteb keeps results by its name and revision: without one, every model
        has the same name, and mteb must be called with `cache=None`.
        """

    def encode(
        self, inputs: Iterable[Mapping[str, Any]], **settings: object
    ) -> Float32[np.ndarray, "n dim"]:
        """One unit vector for each text of all batches, {"text": [...]}; ValueError for a batch without
        texts.

        The settings (task, split, subset, kind of prompt, batch size) change nothing: a text is
        encoded as it is.
        """
        texts: list[str] = []
        for batch in inputs:
            if "text" not in batch:
                raise ValueError(
                    f"a batch of mteb has {', '.join(batch)}, but no text: only tasks of texts are "
                    "supported; choose one"
                )
            texts += batch["text"]

        return encode_texts(self._encoder, texts).numpy()

    def similarity(self, embeddings1: Vectors, embeddings2: Vectors) -> Float[Tensor, "n m"]:
        """The cosine of each of the first vectors with each of the second ones."""
        return _unit(embeddings1) @ _unit(embeddings2).T

    def similarity_pairwise(
        self, embeddings1: Vectors, embeddings2: Vectors
    ) -> Float[Tensor, " n"]:
        """The cosine of each of the first vectors with the second one in its place."""
        return (_unit(embeddings1) * _unit(embeddings2)).sum(-1)


def _unit(vectors: Vectors) -> Float[Tensor, "n dim"]:
    """As a matrix of unit rows; a single vector is one row."""
    return normalize(torch.atleast_2d(torch.as_tensor(vectors)).float(), dim=-1)
