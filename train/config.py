"""Settings of the steps tokenizer and train, from the vocabulary to the whole run."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Interval

from cluster.identity import MACHINE_FACT
from cluster.machine import AUTO, PRECISION, Precision, PrecisionChoice
from cluster.ranges import check_ranges
from cluster.resources import Resources
from curation.encoders.views import AugmentConfig
from curation.pairs.config import SourceConfig

UNKNOWN = 0  # ids of the special pieces of a sentencepiece vocabulary
END_OF_TEXT = 1
SPECIAL_PIECES = 2 + 256  # unknown, end-of-text and the byte fallback
CaptionUse = Literal["draw", "all"]
AttentionChoice = Literal["auto", "grouped", "triton", "varlen", "xformers"]
HeldOutMetric = Literal["", "val_loss", "val_image_to_text_r1", "val_text_to_image_r1"]


@dataclass(frozen=True)
class TokenizerConfig:
    """The vocabulary of the text encoder."""

    kind: Literal["sentencepiece", "clip"] = "sentencepiece"
    """sentencepiece: trained on the selected captions; clip: the published byte pairs, which
    published weights need.
    """
    vocab_size: int = 4096
    """Pieces of a sentencepiece vocabulary; fewer when the captions cannot fill it."""
    algorithm: Literal["bpe", "unigram"] = "bpe"
    """Algorithm that learns the pieces; unigram takes about eight times as long."""
    lowercase: bool = True
    """Fold case, as CLIP does."""
    max_captions: Annotated[int, Ge(1)] = 2_000_000
    """Largest number of captions that train the vocabulary, evenly spread over the selection."""
    weights: str = field(default="", metadata=MACHINE_FACT)
    """Folder with CLIP's vocab.json and merges.txt, or bpe_simple_vocab_16e6.txt.gz, for
    kind=clip.
    """

    def __post_init__(self) -> None:
        check_ranges(self, "tokenizer")
        if self.vocab_size <= SPECIAL_PIECES:
            raise ValueError(
                f"vocab_size {self.vocab_size}: must exceed the {SPECIAL_PIECES} byte and special "
                "pieces; raise it"
            )


@dataclass(frozen=True)
class TextConfig:
    """Size of the text encoder; the published one has width 1280, 24 layers and 20 heads."""

    width: Annotated[int, Ge(1)] = 384
    """Channels of a token."""
    layers: Annotated[int, Ge(1)] = 6
    """Transformer blocks."""
    heads: Annotated[int, Ge(1)] = 6
    """Attention heads; the width must be a multiple of their number."""
    context: Annotated[int, Ge(2)] = 77
    """Longest caption in tokens, including end-of-text; longer ones are cut."""

    def __post_init__(self) -> None:
        check_ranges(self, "train.model.text")
        if self.width % self.heads:
            raise ValueError(
                f"text width {self.width} with {self.heads} heads: heads must divide the width; "
                "change one of them"
            )


@dataclass(frozen=True)
class VisionConfig:
    """The head on frozen features; the published one has two blocks."""

    blocks: Annotated[int, Ge(0)] = 2
    """Transformer blocks; 0: a LayerNorm alone, which is all that pooled embeddings allow."""
    drop_path: Annotated[float, Interval(ge=0, lt=1)] = 0.3
    """Share of the images of a batch that skip each branch of a block during training."""
    layer_scale: float = 1e-5
    """Initial LayerScale of both branches of a block."""
    pooling: Literal["cls", "mean", "concat"] = "concat"
    """Image feature: the CLS token, the mean of the patches, or both side by side."""

    def __post_init__(self) -> None:
        check_ranges(self, "train.model.vision")


@dataclass(frozen=True)
class ModelConfig:
    """Text encoder and vision head."""

    text: TextConfig = field(default_factory=TextConfig)
    """The text encoder."""
    vision: VisionConfig = field(default_factory=VisionConfig)
    """The head on the frozen backbone's tokens."""

    def feature_dim(self, image_dim: int) -> int:
        """Channels of an image or caption feature, for backbone tokens of `image_dim` channels."""
        return 2 * image_dim if self.vision.pooling == "concat" else image_dim


def swiglu_hidden(dim: int) -> int:
    """Hidden channels of the head's gated MLP: 8/3 of the width, rounded up to a multiple of 64.

    A gated MLP has three matrices. At two thirds of the usual four times the width, it has as many
    weights as an MLP of two.
    """
    return (int(8 * dim / 3) + 63) // 64 * 64


@dataclass(frozen=True)
class ShuffleConfig:
    """The order of the rows in an epoch."""

    order: Literal["rows", "blocks"] = "rows"
    """rows: a permutation of all rows, best if the pool fits in memory; blocks: blocks of
    neighboring rows, shuffled within windows, which a disk reads at its full rate.
    """
    block_rows: Annotated[int, Ge(1)] = 512
    """Neighboring selected rows that are read together; 64 rows of tokens are about 12 MB."""
    window_blocks: Annotated[int, Ge(1)] = 32
    """Blocks whose rows are shuffled together; a window must fit in memory beside the model."""

    def __post_init__(self) -> None:
        check_ranges(self, "train.shuffle")


@dataclass(frozen=True)
class LiveConfig:
    """Whether the frozen backbone runs during training, and on which crops."""

    enabled: bool = False
    """Run the frozen backbone on the images instead of reading stored tokens; curation still needs
    the embeddings.
    """
    augment: AugmentConfig = AugmentConfig()
    """Sizes of the random crops."""
    source: SourceConfig = SourceConfig()
    """How the pairs are stored; a recipe copies it from the embed step."""
    precision: PrecisionChoice = field(default=AUTO, metadata=PRECISION)
    """Number format of the backbone's matrix products; a recipe copies it from the embed step."""
    weights: str = field(default="", metadata=MACHINE_FACT)
    """Weights of the backbone; a recipe copies embed.backbone.weights."""


@dataclass(frozen=True)
class OptimConfig:
    """AdamW with warm-up and cosine decay; the defaults are those of the published recipe."""

    lr: Annotated[float, Gt(0)] = 7e-4
    """Peak learning rate."""
    weight_decay: Annotated[float, Ge(0)] = 1e-4
    """Weight decay of matrices and embeddings: a step shrinks them by lr times this share."""
    betas: Annotated[tuple[float, float], Interval(ge=0, lt=1)] = (0.9, 0.99)
    """Decay rates of the first and second moment of the gradient."""
    eps: Annotated[float, Gt(0)] = 1e-8
    """Constant added to the root of the second moment."""
    warmup_steps: Annotated[int, Ge(0)] = 100
    """Steps of linear warm-up; a cosine follows, which would reach 0 one step after the last."""
    clip_norm: Annotated[float | None, Gt(0)] = 1.0
    """Largest global norm of the gradient; None: no clipping."""

    def __post_init__(self) -> None:
        check_ranges(self, "train.optim")


@dataclass(frozen=True)
class LossConfig:
    """Which loss, and how it is computed."""

    kind: Literal["softmax", "sigmoid"] = "softmax"
    """softmax: symmetric cross-entropy over the global batch (CLIP); sigmoid: one binary decision
    per pair (SigLIP).
    """
    dtype: Precision = "float32"
    """Number format of the matrix products of the loss. There is no `auto`, because bfloat16
    changes the gradient by about 0.3 %.
    """
    sigmoid_bias: float = -10.0
    """Constant added to the logits of the sigmoid loss."""

    def __post_init__(self) -> None:
        check_ranges(self, "train.loss")


@dataclass(frozen=True)
class ParallelConfig:
    """How the model is spread over devices and computed on them.

    Of these settings, dtype, attention and compile change the last bits of the results.
    """

    dtype: PrecisionChoice = field(default=AUTO, metadata=PRECISION)
    """Number format of matrix products; auto: bfloat16 if the workers' device is fast in it,
    otherwise float32. Parameters, their moments and the sums of gradients are always float32.
    """
    attention: AttentionChoice = "auto"
    """Kernel of attention over packed captions. grouped: one call of torch per caption length, on
    any device. For GPUs: triton (ours), varlen (torch's), xformers (the package's). auto: triton on
    a GPU, otherwise grouped.
    """
    recompute_blocks: bool = field(default=False, metadata=MACHINE_FACT)
    """Recompute the activations of each block in the backward pass: less memory, a third more
    computation.
    """
    compile: bool = False
    """Compile each block with torch.compile."""
    reshard_after_forward: bool = field(default=True, metadata=MACHINE_FACT)
    """Free a block's gathered parameters after its forward pass and gather them again in the
    backward pass: less memory, more communication. No effect on one rank.
    """
    replicas: Annotated[int, Ge(1)] = field(default=1, metadata=MACHINE_FACT)
    """Groups of ranks that each hold a whole model (HSDP); 1: all ranks share one model (FSDP)."""

    def __post_init__(self) -> None:
        check_ranges(self, "train.parallel")


@dataclass(frozen=True)
class CheckpointConfig:
    """When checkpoints are saved and how many are kept."""

    every_steps: Annotated[int, Ge(1)] = 1000
    """Steps between checkpoints."""
    every_minutes: Annotated[float, Gt(0)] = 15.0
    """Longest time between checkpoints, in minutes."""
    keep: Annotated[int, Ge(1)] = 2
    """Number of complete checkpoints to keep, besides the best one."""
    asynchronous: bool = True
    """Write checkpoints in the background while training continues."""
    stall_minutes: Annotated[float | None, Gt(0)] = 15.0
    """Longest time in which no rank gets on, minutes: then the stacks of all ranks go into the log,
    and the workers start again from the last checkpoint; None: they may wait for ever.
    """

    def __post_init__(self) -> None:
        check_ranges(self, "train.checkpoint")


@dataclass(frozen=True)
class TrainConfig:
    """One training run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """Sizes of the text encoder and the head."""
    batch_size: Annotated[int, Ge(2)] = 512
    """Pairs per step, over all workers; the loss contrasts each pair with all the others."""
    num_steps: Annotated[int, Ge(1)] = 1000
    """Optimizer steps."""
    seed: Annotated[int, Ge(0)] = 0
    """Seed of the initial weights, the shuffle, the choice of captions and drop path."""
    holdout: Annotated[float, Interval(ge=0, lt=1)] = 0.02
    """Share of the selected pairs held out for validation, chosen by key; 0: no validation."""
    val_rows: Annotated[int, Ge(0)] = 1024
    """Largest number of pairs in one validation."""
    val_every: Annotated[int, Ge(1)] = 200
    """Steps between validations; the last step always has one."""
    best: HeldOutMetric = ""
    """Held-out metric that chooses the best step. That step's model is exported as best_model/,
    beside the last one; empty: only the last one.
    """
    log_every: Annotated[int, Ge(1)] = 10
    """Steps between lines of metrics."""
    micro_batch: Annotated[int | None, Ge(1)] = None
    """Pairs that a rank encodes at once, for batches that do not fit in memory (GradCache: two
    passes, the same gradient); None: all in one pass.
    """
    captions: CaptionUse = "draw"
    """draw: one caption per pair and epoch; all: every caption once per epoch, no image twice in a
    batch.
    """
    shuffle: ShuffleConfig = field(default_factory=ShuffleConfig)
    """Order of the pairs in an epoch."""
    live: LiveConfig = field(default_factory=LiveConfig)
    """Whether the backbone reads images instead of stored tokens."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimizer and learning rate."""
    loss: LossConfig = field(default_factory=LossConfig)
    """The loss over the global batch."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    """How the model is spread over devices and computed on them."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig, metadata=MACHINE_FACT)
    """When checkpoints are saved."""
    resources: Resources = field(default_factory=Resources)
    """Number of workers, and cores and GPUs per worker."""

    def __post_init__(self) -> None:
        check_ranges(self, "train")
        if self.optim.warmup_steps >= self.num_steps:
            raise ValueError(
                f"train.optim.warmup_steps is {self.optim.warmup_steps} of {self.num_steps} "
                "steps: must be fewer, or the learning rate never falls; lower it, or raise "
                "train.num_steps"
            )
