"""The training loop that every rank runs, inside a process group that exists already.

It knows files and ranks, not Ray. All state is the checkpoint and the step number: what a step
draws at random is a function of (seed, step, rank), so that a run that was interrupted and resumed
ends with the bits of one that was not.
"""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from cluster.files import append_jsonl
from curation.shards.schema import PATCHES, REGISTERS
from train.batch import split
from train.checkpoint import Checkpoints
from train.config import (
    TrainConfig,
)
from train.data import Pairs
from train.export.folder import export_model
from train.flop import TRAINING, captions_flop, head_flop
from train.gradients import backward, clip_gradients
from train.images import Images
from train.live import LiveBackbone, identity
from train.metrics_file import METRICS, StepNote, keep_metrics
from train.model import DinoTxt, PairFeatures
from train.optim import learning_rate, make_optimizer, set_learning_rate
from train.parallel import parallelize, plain_name
from train.shuffle import mix
from train.speed import Speed
from train.stall import Watchdog
from train.tokenizer import load_tokenizer
from train.validation import batch_accuracy, score, validate

logger = logging.getLogger(__name__)

MODEL = "model"
BEST_MODEL = "best_model"
CHECKPOINTS = "checkpoints"
Interruption = Literal["", "save", "stop"]


@dataclass(frozen=True)
class Job:
    """Where a run reads and writes."""

    out: Path
    embeddings: Path
    selection: Path
    tokenizer: Path
    source: Path | None = None
    """The raw pairs, for a live backbone."""
    views: tuple[Path, ...] = ()
    """Embeddings of further views of the same images."""


def train(
    config: TrainConfig, job: Job, interruption: Callable[[], Interruption] = lambda: ""
) -> bool:
    """Train from the last complete checkpoint or from scratch; False when it had to stop before the
    end.
    """
    rank = dist.get_rank()
    world = dist.get_world_size()
    device = device_of_rank()
    pairs = read_pairs(config, job)
    check(config, pairs, world)

    torch.manual_seed(config.seed)
    model = DinoTxt(config.model, pairs.tokenizer.vocab_size, pairs.spec.dim).to(device)
    model = parallelize(model, config.parallel, device)
    optimizer = make_optimizer(model, config.optim)
    checkpoints = Checkpoints(job.out / CHECKPOINTS, config.checkpoint, model, optimizer)
    start = checkpoints.load()

    if rank == 0:
        keep_metrics(job.out / METRICS, start)
        logger.info(
            "training from_step=%d steps=%d pairs=%d epoch_steps=%d world=%d",
            start,
            config.num_steps,
            len(pairs.train_places),
            pairs.epoch_steps(config.batch_size),
            world,
        )

    live = LiveBackbone(config.live, pairs.spec) if config.live.enabled else None
    encode_images = live.encode if live else identity
    image_flop = flop_per_image(config, model, pairs) + (live.flop if live else 0.0)
    speed = Speed()
    note_step = StepNote(job.out / METRICS)
    # With parts, the batch waits on the CPU, and they go to the device one by one.
    prefetch_device = device if config.micro_batch is None else torch.device("cpu")

    with (
        pairs.batches(
            start, config.num_steps, config.batch_size, rank, world, prefetch_device
        ) as batches,
        Watchdog(job.out, config.checkpoint.stall_minutes, start) as watchdog,
    ):
        for step in range(start, config.num_steps):
            watchdog(step, "waits for data")
            with speed.waiting_for_data():
                batch = next(batches)
            watchdog(step, "computes")
            parts = [encode_images(part) for part in split(batch, config.micro_batch)]
            lr = learning_rate(step, config.num_steps, config.optim)
            set_learning_rate(optimizer, lr)

            loss, features = backward(model, parts, config.loss, mix(config.seed, step, rank))
            grad_norm = clip_gradients(model, config.optim.clip_norm, config.parallel.replicas)

            watchdog(step, "waits for the other ranks")
            asked = interruption()
            is_bad, must_stop, must_save = any_rank(
                not torch.isfinite(loss + grad_norm),
                asked == "stop",
                asked == "save" or checkpoints.is_due(step + 1),
            )
            if is_bad:
                checkpoints.wait()
                keys = suspicious_keys(batch.keys, features)
                raise not_finite(float(loss), float(grad_norm), step + 1, keys, job)

            optimizer.step()
            optimizer.zero_grad()
            model.logit_scale.clamp()
            flop = (
                TRAINING * captions_flop(model, batch.captions.groups)
                + len(batch.keys) * image_flop
            )
            speed.add(len(batch.keys), len(batch.captions.tokens), batch.num_truncated, flop)

            done = step + 1
            watchdog(step, "saves")
            if rank == 0:
                note_step(done)
            is_last = done == config.num_steps
            is_validated = done % config.val_every == 0 or is_last
            is_best = False
            if done % config.log_every == 0 or is_validated or must_save or must_stop:
                numbers = {
                    "loss": float(loss),
                    "lr": lr,
                    "grad_norm": float(grad_norm),
                    "logit_scale": float(features.scale),
                    "batch_accuracy": batch_accuracy(features),
                    **speed.rates(device),
                    "workers": float(world),
                }
                if is_validated:
                    numbers |= validate(model, pairs, config, device, encode_images)
                    (is_best,) = any_rank(score(numbers, config.best) > checkpoints.best_score)
                if rank == 0:
                    append_jsonl(job.out / METRICS, {"step": done, "time": time.time(), **numbers})
                speed = Speed()

            checkpoints.poll()
            if (must_save or must_stop or is_best) and not is_last:
                checkpoints.save(done, score(numbers, config.best) if is_best else -math.inf)
            if must_stop and not is_last:
                checkpoints.wait()
                return False

    checkpoints.wait()
    export(job.out / MODEL, config, model, pairs)
    if config.best:
        if not is_best:
            checkpoints.load_best()
        export(job.out / BEST_MODEL, config, model, pairs)

    return True


def not_finite(
    loss: float, grad_norm: float, step: int, keys: list[str], job: Job
) -> FloatingPointError:
    """The error of a step whose loss or gradient is infinite or NaN, most likely on these pairs."""
    return FloatingPointError(
        f"loss {loss:.4g} and gradient norm {grad_norm:.4g} at step {step}, rank {dist.get_rank()}, "
        f"on the pairs {keys}: both must be finite; lower optim.lr or drop these pairs (training "
        f"then starts from scratch); earlier checkpoints stay in {job.out / CHECKPOINTS}"
    )


def flop_per_image(config: TrainConfig, model: DinoTxt, pairs: Pairs) -> float:
    """FLOP of training the head on one image; the rows that drop path leaves out cost nothing."""
    num_tokens = 1 + pairs.spec.num_tokens(REGISTERS) + pairs.spec.num_tokens(PATCHES)
    computed_share = 1 - config.model.vision.drop_path
    return TRAINING * computed_share * head_flop(model, num_tokens)


def export(folder: Path, config: TrainConfig, model: DinoTxt, pairs: Pairs) -> None:
    """Write the model as it stands; all ranks call it."""
    weights = full_weights(model)
    if dist.get_rank() == 0:
        export_model(folder, config.model, weights, pairs.tokenizer, pairs.spec)
    dist.barrier()


def read_pairs(config: TrainConfig, job: Job) -> Pairs:
    """The pairs of a run, as each rank opens them."""
    pairs = Pairs(job.embeddings, job.selection, load_tokenizer(job.tokenizer), config, job.views)
    if config.live.enabled:
        if job.source is None:
            raise ValueError(
                "train.live.enabled without images: the train step needs the raw pairs; pass "
                "them as input source"
            )
        pairs.read_images(Images(config.live, job.source, pairs.shards, pairs.selected_rows))
    return pairs


def check(config: TrainConfig, pairs: Pairs, world: int) -> None:
    """ValueError when these pairs cannot be trained on with this configuration and this number of
    ranks.
    """
    if config.best and min(config.val_rows, len(pairs.val_places)) < 2:
        raise ValueError(
            f"train.best is {config.best} and {len(pairs.val_places)} pairs are held out: two are "
            "needed to compare steps; raise train.holdout, or leave train.best out"
        )
    if len(pairs.train_places) < config.batch_size:
        raise ValueError(
            f"{len(pairs.train_places)} training pairs, batch_size {config.batch_size}: one whole "
            "batch is needed; lower the batch size or select more pairs"
        )
    if not world or config.batch_size % world:
        raise ValueError(
            f"train.batch_size {config.batch_size} on {world} workers: must be a multiple; change "
            "one of them"
        )
    if world % config.parallel.replicas:
        raise ValueError(
            f"train.parallel.replicas is {config.parallel.replicas} on {world} workers: must "
            "divide them; change one"
        )
    if config.model.vision.blocks and pairs.spec.content == "pooled":
        raise ValueError(
            f"{config.model.vision.blocks} vision blocks on pooled embeddings: they need patches; "
            "set it to 0 or embed with content=grid or content=tokens"
        )


def device_of_rank() -> torch.device:
    """This rank's GPU when ranks talk over nccl, else the CPU."""
    return (
        torch.device("cuda", torch.cuda.current_device())
        if dist.get_backend() == "nccl"
        else torch.device("cpu")
    )


def any_rank(*flags: bool | torch.Tensor) -> tuple[bool, ...]:
    """For each flag, whether it is set on some rank: all ranks must take the same branch."""
    votes = torch.tensor([float(flag) for flag in flags], device=device_of_rank())
    dist.all_reduce(votes, dist.ReduceOp.MAX)
    return tuple(bool(vote) for vote in votes.tolist())


def suspicious_keys(keys: list[str], features: PairFeatures) -> list[str]:
    """Keys of pairs whose features are not finite; the first keys of the batch when all are
    finite.
    """
    finite = features.images.isfinite().all(1) & features.texts.isfinite().all(1)
    return [key for key, is_finite in zip(keys, finite.tolist(), strict=True) if not is_finite][
        :20
    ] or keys[:20]


def full_weights(model: DinoTxt) -> dict[str, torch.Tensor]:
    """Whole float32 tensors on the CPU of rank 0, by plain names."""
    state = get_model_state_dict(
        model, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )
    return {
        plain_name(name): tensor
        for name, tensor in state.items()
        if isinstance(tensor, torch.Tensor)
    }
