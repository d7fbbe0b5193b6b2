"""A model of transformers as an encoder, whose tokens are CLS, registers and patches."""

from typing import Any

import torch
import transformers
from jaxtyping import Float
from torch import Tensor, nn

StateDict = dict[str, Tensor]


class TokenEncoder(nn.Module):
    """Images to the last layer's CLS, registers and patches."""

    def __init__(self, model: Any, num_registers: int) -> None:
        super().__init__()
        self.model = model
        self.num_registers = num_registers

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> tuple[Tensor, Tensor, Tensor]:
        tokens = self.model(pixel_values=images).last_hidden_state
        first_patch = 1 + self.num_registers
        return tokens[:, 0], tokens[:, 1:first_patch], tokens[:, first_patch:]


def load_library_model(family: Any, config: Any, state: StateDict) -> Any:
    """A model of transformers with these weights in float32.

    Raises ValueError when weights are missing, unknown or of another shape.
    """
    transformers.utils.logging.disable_progress_bar()
    model, loaded = family.from_pretrained(
        None, config=config, state_dict=state, output_loading_info=True, dtype=torch.float32
    )

    # The library only warns: its report of missing, unexpected and mismatched keys must be empty.
    problems = {kind: sorted(map(str, keys)) for kind, keys in loaded.items() if keys}
    if problems:
        raise ValueError(
            f"backbone weights do not fit {family.__name__} ({problems}): give a published file"
        )

    return model


def random_library_state(family: Any, config: Any, seed: int) -> StateDict:
    """Seeded weights as the library initializes them; the caller's random state does not change."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        return family(config).state_dict()
