"""The inputs of an export: a trained model, its frozen backbone, and the facts of its card."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from curation.encoders.backbone import Backbone
from train.export.folder import LoadedModel

BackboneForm = Literal["copy", "reference"]


@dataclass(frozen=True)
class Score:
    """One score of the model on an evaluation set, as the tables of results show it."""

    evaluation_set: str
    metric: str
    value: str
    """In percent, except for ranks."""
    interval: str
    """The 95 % confidence interval, in the same unit."""
    protocol: str
    """How it was measured, in one line."""


@dataclass(frozen=True)
class Facts:
    """What is known about a model besides its weights."""

    source: Mapping[str, str] = field(default_factory=dict)
    """Recipe, step and fingerprint, or the digests of the files that the model came from."""
    data: str = ""
    """The pairs that it was trained on."""
    num_pairs: int | None = None
    """Pairs selected for training."""
    selection_sha256: str | None = None
    """Digest of the selection file."""
    scores: tuple[Score, ...] = ()


@dataclass(frozen=True)
class Subject:
    """A model to export."""

    loaded: LoadedModel
    backbone: Backbone | None = None
    """On the CPU; None if its weights are not available."""
    problem: str = "no backbone was given"
    """Why there is no backbone."""
    facts: Facts = Facts()
    backbone_form: BackboneForm = "copy"
    """copy: a whole export holds the backbone's weights; reference: it holds only their repository,
    revision and digest on the hub.
    """
    has_int8: bool = False
    """Also write int8 forms, if the format has them."""

    def whole_backbone(self, name: str) -> Backbone:
        """The backbone. ValueError if there is none, because the format `name` needs it."""
        if self.backbone is None:
            raise ValueError(
                f"{name} holds the whole model, and its backbone "
                f"{self.loaded.spec.backbone or 'is not named'} cannot be loaded: {self.problem}; "
                "name it and its weights with --embed.backbone.name and --embed.backbone.weights"
            )
        return self.backbone
