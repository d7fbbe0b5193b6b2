"""The recipes that come with the project; every field that they leave out has its default."""

from curation.choice.config import DuplicatesConfig
from curation.clusters.config import KMeansConfig, LevelsConfig
from curation.config import CaptionClustersConfig, CurateConfig, EmbedConfig
from curation.encoders.config import BackboneConfig, CaptionConfig
from curation.quickstart.pool import EmojiConfig
from evaluate.config import EvaluateConfig, ReportConfig, SegmentationConfig
from pipeline.recipes import DataConfig, Recipe
from train.config import (
    CheckpointConfig,
    ModelConfig,
    OptimConfig,
    ParallelConfig,
    TextConfig,
    TokenizerConfig,
    TrainConfig,
    VisionConfig,
)

# Blocks of the vision head need all patches, and pooled embeddings hold only their mean: recipes
# with content="pooled" have no blocks.

QUICKSTART = Recipe(
    name="quickstart",
    description="emoji drawings of five vendors, scored on the drawings of two others; minutes "
    "on two cores",
    emoji=EmojiConfig(),
    embed=EmbedConfig(backbone=BackboneConfig(image_size=128), content="pooled"),
    curate=CurateConfig(
        share=0.7,
        levels=LevelsConfig(clusters=(1000, 100)),
        text=CaptionClustersConfig(levels=LevelsConfig(clusters=(1000,))),
    ),
    tokenizer=TokenizerConfig(vocab_size=2048),
    train=TrainConfig(
        model=ModelConfig(
            text=TextConfig(width=256, layers=2, heads=4, context=32), vision=VisionConfig(blocks=0)
        ),
        batch_size=512,
        num_steps=200,
        val_every=50,
        optim=OptimConfig(lr=2e-3, warmup_steps=20),
        checkpoint=CheckpointConfig(every_steps=50),
    ),
    evaluate=EvaluateConfig(
        templates="emoji",
        segmentation=SegmentationConfig(
            short_side=336, window=224, stride=112, background="threshold", background_cosine=0.25
        ),
    ),
    report=ReportConfig(
        title="dino.txt quickstart", subtitle="Emoji drawings; two vendors were never trained on"
    ),
)

DEBUG = Recipe(
    name="debug",
    description="a random backbone and a tiny text encoder; seconds, for the tests",
    emoji=EmojiConfig(
        vendors=("apple", "google", "twitter"),
        held_out=("apple",),
        concepts=400,
        retrieval_images=60,
        scenes=4,
        tar_rows=256,
    ),
    # 56 px are 4 x 4 patches of 14, which the stored grid pools two by two.
    embed=EmbedConfig(
        backbone=BackboneConfig(name="random-vit", image_size=56), content="grid", grid=2
    ),
    curate=CurateConfig(
        share=0.25,
        levels=LevelsConfig(clusters=(14, 2)),
        text=CaptionClustersConfig(levels=LevelsConfig(clusters=(14,))),
    ),
    tokenizer=TokenizerConfig(vocab_size=600),
    train=TrainConfig(
        model=ModelConfig(
            text=TextConfig(width=32, layers=1, heads=2, context=24), vision=VisionConfig(blocks=1)
        ),
        batch_size=64,
        num_steps=20,
        val_every=10,
        optim=OptimConfig(lr=1e-3, warmup_steps=2),
        checkpoint=CheckpointConfig(every_steps=5),
    ),
    evaluate=EvaluateConfig(
        templates="emoji",
        segmentation=SegmentationConfig(short_side=112, window=56, stride=56),
        bootstrap_samples=100,
    ),
    compare=(),
)

FLICKR8K = Recipe(
    name="flickr8k",
    description="real photographs with five captions each; scored on its val split and the sets "
    "beside it",
    data=DataConfig(
        classification=("imagenette.tar", "imagenet-samples.tar"),
        retrieval=("flickr8k.tar",),
        segmentation=("camvid.tar", "clothing.tar"),
    ),
    embed=EmbedConfig(content="pooled"),
    curate=CurateConfig(
        share=0.9,
        levels=LevelsConfig(clusters=(125, 12)),
        text=CaptionClustersConfig(levels=LevelsConfig(clusters=(125,))),
    ),
    train=TrainConfig(
        model=ModelConfig(
            text=TextConfig(width=256, layers=2, heads=4, context=48), vision=VisionConfig(blocks=0)
        ),
        batch_size=512,
        num_steps=200,
        val_every=50,
        optim=OptimConfig(lr=2e-3, weight_decay=5.0, warmup_steps=20),
        checkpoint=CheckpointConfig(every_steps=50),
    ),
    evaluate=EvaluateConfig(
        split="val", segmentation=SegmentationConfig(short_side=352, window=224, stride=112)
    ),
    report=ReportConfig(title="dino.txt on Flickr8k"),
    compare=(),
)

OWN = Recipe(
    name="own",
    description="your pairs, scored on the evaluation sets that you name; a small text encoder "
    "on any machine",
    embed=EmbedConfig(content="pooled"),
    train=TrainConfig(
        model=ModelConfig(vision=VisionConfig(blocks=0)),
    ),
    compare=(),
)

VITL14 = Recipe(
    name="vitl14",
    description="the paper's: ViT-L/14 with registers, two vision blocks, batch 65,536, "
    "50,000 steps",
    embed=EmbedConfig(
        backbone=BackboneConfig(name="dinov2-vitl14-reg"),
        captions=CaptionConfig(encoder="minilm", dim=384),
    ),
    curate=CurateConfig(
        target_rows=650_000_000,
        metric="euclidean",
        kmeans=KMeansConfig(iterations=50),
        # Of Vo et al. 2024 for 743 M web images. Their resampling steps 1, 10, 10, 10 count the
        # first pass; ours do not.
        levels=LevelsConfig(
            clusters=(10_000_000, 500_000, 50_000, 10_000),
            split=(100, 0, 0, 0),
            resampling=(0, 9, 9, 9),
            nearest=(1, 10, 5, 3),
        ),
        # As many clusters as MetaCLIP's metadata have entries, and its share of pairs in the tail.
        text=CaptionClustersConfig(
            levels=LevelsConfig(clusters=(500_000,), split=(100,)), tail_share=0.06
        ),
        duplicates=DuplicatesConfig(neighbors=0),
    ),
    tokenizer=TokenizerConfig(kind="clip", vocab_size=49_408),
    train=TrainConfig(
        model=ModelConfig(
            text=TextConfig(width=1280, layers=24, heads=20, context=77),
            vision=VisionConfig(blocks=2),
        ),
        batch_size=65_536,
        num_steps=50_000,
        val_every=1000,
        optim=OptimConfig(lr=7e-4, weight_decay=1e-4, betas=(0.9, 0.99), warmup_steps=2000),
        parallel=ParallelConfig(recompute_blocks=True, compile=True),
    ),
    compare=(),
    report=ReportConfig(title="dino.txt on ViT-L/14"),
)

PRESETS = {recipe.name: recipe for recipe in (QUICKSTART, OWN, FLICKR8K, VITL14, DEBUG)}
