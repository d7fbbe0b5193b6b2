"""The train step: the training loop on Ray Train workers, which are restarted when one dies.

Driver and workers talk through files in `out`; the state that Ray keeps is not used.

| file | written by | read by | says |
|---|---|---|---|
| `checkpoints/step-*/` | all ranks | ranks that start, driver | the state; complete once `complete.json` is in it |
| `metrics.jsonl` | rank 0 | driver, tracking | a line every few steps, from which progress is shown |
| `step.txt` | rank 0 | driver | the last finished step, between two lines of metrics |
| `stop` | driver (SIGTERM, SIGUSR2, `request_stop`) | rank 0 | save and end for good |
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
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import ray
import ray.train
import torch
import torch.distributed as dist
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.execution.context import get_train_context

from cluster.devices import settled
from cluster.endings import StoppedError
from cluster.files import read_jsonl
from cluster.placement import resolve, room_for
from cluster.resources import Resources
from cluster.session import free_port, session
from cluster.storage import absolute
from cluster.threads import limit_threads
from train.checkpoint import complete_checkpoints, damaged_checkpoints, step_of
from train.config import TrainConfig
from train.data import Pairs
from train.failure import REASON, check_space, failure, note_failure, reserve_reason
from train.loop import CHECKPOINTS, Interruption, Job, check, read_pairs, train
from train.metrics_file import METRICS, STEP, followed, summary
from train.model import DinoTxt
from train.validation import score

logger = logging.getLogger(__name__)

STOP = "stop"
GROW = "grow"
RAY_FOLDER = "ray"

# Between two looks for new nodes. Nodes that join within this time restart the workers only once.
GROWTH_S = 60.0
MAX_FAILURES = 8  # failures of workers after which Ray gives up; see `fit_to_the_end`

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
    for name in (STOP, GROW):
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
            logger.warning("%s: training continues from step %d", problem, _saved_step(job))

        with _stop_on_signal(job.out), followed(job.out / METRICS, config.num_steps):
            fit_to_the_end(config, job)

    if reason := failure(job.out):
        raise TrainingFailed(reason)

    rows = read_jsonl(job.out / METRICS)
    if (job.out / STOP).exists() and (not rows or rows[-1]["step"] < config.num_steps):
        raise StoppedError(
            f"asked to stop by a signal or a file named {STOP}; step {_saved_step(job)} of "
            f"{config.num_steps} is saved"
        )

    # The models are exported: neither the checkpoints nor Ray's files are needed any longer.
    for folder in (CHECKPOINTS, RAY_FOLDER):
        shutil.rmtree(job.out / folder, ignore_errors=True)

    for name in (STEP, REASON):
        (job.out / name).unlink(missing_ok=True)

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
    after MAX_FAILURES failures, as long as there was a new checkpoint in between.
    """
    while True:
        before = _saved_step(job)
        try:
            _fit(config, job, placement(config))
        except ray.train.WorkerGroupError as error:
            if _saved_step(job) == before:
                raise  # no progress: the same failures would come again
            logger.warning(
                "training failures=%d continues_at_step=%d last=%r",
                MAX_FAILURES,
                _saved_step(job),
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


def _saved_step(job: Job) -> int:
    """Number of finished steps in the last complete checkpoint; 0 without one."""
    saved = complete_checkpoints(job.out / CHECKPOINTS)
    return step_of(saved[-1]) if saved else 0


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


class Interruptions:
    """Asks rank 0 to save, or to save and end.

    The reasons are a request of the driver, a node that is about to be preempted, or room for more
    workers. Ray's own `get_preemption_info` cannot serve: it is a barrier of all workers in each
    step, and workers that were left out of the group never reach it.
    """

    def __init__(self, config: TrainConfig, out: Path, resources: Resources, most: int) -> None:
        self.config = config
        self.out = out
        self.resources = resources
        self.most = most
        self.is_preempted = False
        self.group = self._possible()
        self.checked_s = time.monotonic()

    def __call__(self) -> Interruption:
        if (self.out / STOP).exists() or self._has_grown():
            return "stop"

        # The notice stays in place: one save is enough.
        if (
            not self.is_preempted
            and get_train_context().preemption_context.preemption_info is not None
        ):
            self.is_preempted = True
            return "save"
        return ""

    def _has_grown(self) -> bool:
        """Whether more workers fit than at the last check; it checks once per GROWTH_S."""
        if not self.resources.min_workers or time.monotonic() - self.checked_s < GROWTH_S:
            return False

        before = self.group
        self.group = self._possible()
        self.checked_s = time.monotonic()
        return self.group > before

    def _possible(self) -> int:
        return largest_group(self.config, min(self.most, room_for(self.resources)))


def largest_group(config: TrainConfig, most: int) -> int:
    """The largest number of workers, up to `most`, that divides a batch; 0 when there is none.

    It is also a multiple of the replicas. A batch of 512 on up to 6 workers: 4.
    """
    sizes = range(most, 0, -1)
    return next(
        (
            size
            for size in sizes
            if not config.batch_size % size and not size % config.parallel.replicas
        ),
        0,
    )


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
def _stop_on_signal(out: Path) -> Iterator[None]:
    """While the body runs, SIGTERM and SIGUSR2 ask the workers to save and stop.

    Only the main thread can handle signals: in any other, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    before = {
        number: signal.signal(number, lambda *_: request_stop(out))
        for number in (signal.SIGTERM, signal.SIGUSR2)
    }

    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def request_stop(out: Path) -> None:
    """Ask the training that writes into `out` to save and stop; any process may call it."""
    (out / STOP).touch()
