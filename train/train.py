"""The train step: the training loop on Ray Train workers, which are restarted when one dies.

Driver and workers talk through files in `out`; the state that Ray keeps is not used.

| file | written by | read by | says |
|---|---|---|---|
| `checkpoints/step-*/` | all ranks | ranks that start, driver | the state; complete once `complete.json` is in it |
| `metrics.jsonl` | rank 0 | driver, tracking | a line every few steps, from which progress is shown |
| `step.txt` | rank 0 | driver | the last finished step, between two lines of metrics |
| `stop` | driver (SIGTERM, SIGUSR2, `request_stop`) | rank 0 | save and end for good |
| `begun` | rank 0 | driver | the loop runs, and sees `stop`; before, the driver ends by itself |
| `stalled/` | all ranks | driver | what each rank did when no step was finished for too long (train/stall.py) |
| `grow` | rank 0 | driver | all ranks have saved and ended, because more workers fit now: start again with them |
| `failed.txt` | any rank | ranks that start, driver | an error that another try would repeat: do not try again |

A worker that starts continues from the last complete checkpoint. With `resources.min_workers`,
training goes on with fewer workers when a node is lost, from that checkpoint. When a node joins, the
workers save first, so that no step is repeated.
"""

import logging
import math
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import ray
import ray.train
import torch
import torch.distributed as dist
from ray.exceptions import RayActorError
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from cluster.devices import settled
from cluster.endings import StoppedError
from cluster.files import read_jsonl
from cluster.placement import resolve
from cluster.resources import Resources
from cluster.session import free_port, session
from cluster.storage import absolute
from cluster.threads import limit_threads
from train.checkpoint import damaged_checkpoints, saved_step
from train.config import TrainConfig
from train.data import Pairs
from train.failure import REASON, check_space, failure, note_failure, reserve_reason
from train.interruption import BEGUN, GROW, STOP, Interruptions, largest_group, stop_on_signal
from train.loop import CHECKPOINTS, Job, check, read_pairs, train
from train.metrics_file import METRICS, STEP, followed, summary
from train.model import DinoTxt
from train.stall import STALLED, SUMMARY, log_stalls
from train.validation import score

logger = logging.getLogger(__name__)

RAY_FOLDER = "ray"

MAX_FAILURES = 8  # failures of workers after which Ray gives up; see `fit_to_the_end`
MAX_LOSSES = 3
TELL_S = 1.0  # between two looks for a stall

# By default, threads of OpenMP spin while they wait for each other, and so take cores from other
# processes: with two threads on two busy cores, a step took fifteen times as long. The variable
# must be set before a worker starts.
WORKER_ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE"}
NOISY = ("ray.train", "ray.train.v2", "ray.data")


class TrainingFailed(RuntimeError):
    """The loop raised an error that another try would repeat."""


def run(
    config: TrainConfig,
    *,
    out: Path,
    embeddings: Path,
    selection: Path,
    tokenizer: Path,
    source: Path | None = None,
    **views: Path,
) -> dict[str, float]:
    """Step: train on the selected embeddings; returns the last value of each metric.

    It continues from the last checkpoint in `out`. `source` is the raw pairs, for a live backbone;
    `views` are embeddings of further views of the same images. TrainingFailed for an error that
    another try would repeat, StoppedError when it was asked to stop.
    """
    # Workers run in other directories: paths must be absolute.
    job = Job(
        out.resolve(),
        embeddings.resolve(),
        selection.resolve(),
        tokenizer.resolve(),
        absolute(source) if source else None,
        tuple(views[name].resolve() for name in sorted(views)),
    )

    # Remove the requests of an earlier run.
    for name in (STOP, GROW, BEGUN):
        (job.out / name).unlink(missing_ok=True)

    reserve_reason(job.out)

    with session():
        config = settled(config, config.resources)
        resources = placement(config)
        is_elastic = bool(resources.min_workers)
        world = largest_group(config, resources.workers) if is_elastic else resources.workers

        # The driver opens the pairs once itself, so that all checks come before any worker starts.
        pairs = read_pairs(config, job)
        check(config, pairs, world)
        check_space(config, job.out, job.out / CHECKPOINTS, _num_weights(config, pairs))
        for problem in damaged_checkpoints(job.out / CHECKPOINTS):
            logger.warning(
                "%s: training continues from step %d", problem, saved_step(job.out / CHECKPOINTS)
            )

        with (
            stop_on_signal(job),
            followed(job.out / METRICS, config.num_steps),
            _telling_of_stalls(job.out),
        ):
            fit_to_the_end(config, job)

    if reason := failure(job.out):
        raise TrainingFailed(reason)

    rows = read_jsonl(job.out / METRICS)
    if (job.out / STOP).exists() and (not rows or rows[-1]["step"] < config.num_steps):
        raise StoppedError(
            f"asked to stop by a signal or a file named {STOP}; step {saved_step(job.out / CHECKPOINTS)} of "
            f"{config.num_steps} is saved"
        )

    _tidy(job.out)
    return _final_metrics(config, rows)


def _tidy(out: Path) -> None:
    """The models are exported: neither the checkpoints nor Ray's files are needed any longer."""
    for folder in (CHECKPOINTS, RAY_FOLDER, STALLED):
        shutil.rmtree(out / folder, ignore_errors=True)

    for name in (STEP, REASON, BEGUN):
        (out / name).unlink(missing_ok=True)


def _final_metrics(config: TrainConfig, rows: list[dict]) -> dict[str, float]:
    """The last value of each metric, and those of the best model where one is exported; says so when
    captions were cut.
    """
    metrics = summary(rows, config.batch_size)
    if config.best:
        best = max(
            (row for row in rows if config.best in row), key=lambda row: score(row, config.best)
        )
        metrics |= {"best_step": float(best["step"]), f"best_{config.best}": best[config.best]}

    if metrics["captions_cut"]:
        logger.warning(
            "captions cut to %d tokens: %d (%.1f %% of those used); raise "
            "train.model.text.context to keep them whole",
            config.model.text.context,
            metrics["captions_cut"],
            100 * metrics["captions_cut_share"],
        )

    return metrics


def placement(config: TrainConfig) -> Resources:
    """The resources of a run in this Ray session.

    If the config names a number of workers, that number. Otherwise, one worker per GPU, as many as
    divide the batch; on CPUs, one worker with all cores of a node, because threads share the model,
    while several processes would each have to gather it.
    """
    resources = resolve(config.resources, max_workers=config.batch_size)
    if config.resources.workers:
        return resources
    if not resources.gpus:
        cpus = max(
            float(node["Resources"].get("CPU", 0.0)) for node in ray.nodes() if node["Alive"]
        )
        return replace(resources, workers=1, cpus=max(resources.cpus or 0.0, cpus))

    return replace(resources, workers=largest_group(config, resources.workers) or resources.workers)


def fit_to_the_end(config: TrainConfig, job: Job) -> None:
    """Run the loop until it ends.

    It runs again with more workers when it asks for them. It also runs again when Ray gives up
    after MAX_FAILURES failures, as long as there was a new checkpoint in between, and when the
    process of Ray Train that starts the workers is lost, MAX_LOSSES times at one checkpoint.
    """
    num_losses = 0
    while True:
        before = saved_step(job.out / CHECKPOINTS)
        try:
            _fit(config, job, placement(config))
        except (ray.train.WorkerGroupError, RayActorError) as error:
            is_controller = isinstance(error, RayActorError)
            saved = saved_step(job.out / CHECKPOINTS)
            num_losses = num_losses + 1 if saved == before else 0
            if num_losses > (MAX_LOSSES if is_controller else 0):
                raise  # no progress: the same failures would come again
            logger.warning(
                "training failures=%d continues_at_step=%d last=%r",
                1 if is_controller else MAX_FAILURES,
                saved,
                error,
            )
            continue

        if not (job.out / GROW).exists():
            return
        (job.out / GROW).unlink()


def _num_weights(config: TrainConfig, pairs: Pairs) -> int:
    """Number of weights of the model, which is built on the meta device, without memory."""
    with torch.device("meta"):
        model = DinoTxt(config.model, pairs.tokenizer.vocab_size, pairs.spec.dim)
    return sum(weight.numel() for weight in model.parameters())


def _fit(config: TrainConfig, job: Job, resources: Resources) -> None:
    """Run the loop on Ray Train workers; when one is lost, again from the last checkpoint."""
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)

    os.environ.setdefault("RAY_TRAIN_METRICS_ENABLED", "0")
    most = max(resources.workers, config.resources.workers)
    options = resources.actor_options()
    per_worker = {"CPU": options["num_cpus"], "GPU": options["num_gpus"]}
    if "memory" in options:
        per_worker["memory"] = options["memory"]

    _Trainer(
        _worker,
        train_loop_config={"config": config, "job": job, "resources": resources, "most": most},
        scaling_config=ScalingConfig(  # type: ignore[call-arg]  # mypy sees those of Train v1
            num_workers=(resources.min_workers, most)
            if resources.min_workers
            else resources.workers,  # type: ignore[arg-type]
            use_gpu=bool(resources.gpus),
            resources_per_worker=per_worker,
            # Ray would stop the workers in the middle of a step when more fit; ours save first.
            elastic_resize_monitor_interval_s=math.inf,
        ),
        torch_config=TorchConfig(backend="nccl" if resources.gpus else "gloo"),
        run_config=RunConfig(  # type: ignore[call-arg]
            name="run",
            storage_path=str(job.out / RAY_FOLDER),
            failure_config=FailureConfig(max_failures=MAX_FAILURES),
            worker_runtime_env={"env_vars": WORKER_ENVIRONMENT},
        ),
    ).fit()


class _Trainer(TorchTrainer):
    """A trainer that leaves Ctrl-C to this process.

    Ray's own handler would end the process with code 1 and without a message.
    """

    def _register_sigint_handler(self, controller: object) -> None:
        """Do nothing: KeyboardInterrupt ends the session, and the workers with it."""


def _worker(arguments: dict) -> None:
    config: TrainConfig = arguments["config"]
    job: Job = arguments["job"]
    limit_threads(arguments["resources"].threads)
    torch.use_deterministic_algorithms(True, warn_only=True)

    # Deterministic mode fills every new tensor; nothing here is read before it is written.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if failure(job.out):
        return  # another try would fail in the same way; the driver raises the error from the file
    if dist.get_rank() == 0:
        (job.out / BEGUN).unlink(missing_ok=True)

    try:
        if shrink_group_to(largest_group(config, dist.get_world_size())):
            _train_and_grow(config, job, arguments["resources"], arguments["most"])
    except BaseException as error:  # CheckpointException does not derive from Exception
        note_failure(job.out, error)
        raise


def _train_and_grow(config: TrainConfig, job: Job, resources: Resources, most: int) -> None:
    if dist.get_rank() > 0:
        train(config, job)  # rank 0 decides for all ranks when to save or end
        return

    is_complete = train(config, job, Interruptions(config, job.out, resources, most))
    if not is_complete and not (job.out / STOP).exists():
        (job.out / GROW).touch()


def shrink_group_to(size: int) -> bool:
    """Rebuild the default process group from the first `size` ranks; False on a rank left out.

    The group stays as it is when it has that size already, or when `size` is 0 (no number of
    workers divides the batch).
    """
    rank = dist.get_rank()
    backend = dist.get_backend()
    if size in (0, dist.get_world_size()):
        return True

    # All ranks must learn the address of the new group while the old one still exists.
    address: list[str | None] = [
        f"tcp://{ray.util.get_node_ip_address()}:{free_port()}" if rank == 0 else None
    ]
    dist.broadcast_object_list(address)
    dist.destroy_process_group()
    if rank >= size:
        return False

    dist.init_process_group(backend, init_method=address[0], rank=rank, world_size=size)
    return True


@contextmanager
def _telling_of_stalls(out: Path) -> Iterator[None]:
    """Write into the log what the ranks of the body say of a stall; those before are known."""
    known = set((out / STALLED).glob(f"*/{SUMMARY}"))
    ended = threading.Event()

    def tell() -> None:
        while not ended.wait(TELL_S):
            log_stalls(out, known)
        log_stalls(out, known)

    thread = threading.Thread(target=tell, name="stalls", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
