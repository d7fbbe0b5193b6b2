"""A command as a job of a Ray cluster, through Ray's Jobs API.

What asks for a job (its state, its log, its end) speaks HTTP without Ray, so that `status` answers
at once, and within seconds where no head answers.
"""

import json
import logging
import os
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

ANSWER_S = 5.0  # in which a head must answer
UNREACHABLE = "HEAD_UNREACHABLE"
UNKNOWN = "UNKNOWN"
AGAIN = "`submit` again continues from what is kept"


@dataclass(frozen=True)
class RayJobState:
    """A job as Ray's Jobs API sees it."""

    state: str
    """PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED; UNKNOWN to a head that was started later;
    HEAD_UNREACHABLE.
    """
    message: str = ""
    """What Ray says of it; of a failed job, with the end of its log."""
    elapsed_s: int = 0

    @property
    def is_active(self) -> bool:
        return self.state in ("PENDING", "RUNNING")


def submit(address: str, command: Sequence[str], name: str, variables: Mapping[str, str]) -> str:
    """Submit a command to the cluster whose dashboard is at `address`, and return the job's id.

    The five packages travel with it. ValueError when nobody answers there, or refuses.
    """
    from ray.job_submission import JobSubmissionClient

    from cluster.session import NOT_SHIPPED, ROOT

    # NOT_SHIPPED says all that stays here, and Ray need not tell what it uploads.
    os.environ.setdefault("RAY_OVERRIDE_RUNTIME_ENV_DEFAULT_EXCLUDES", "")
    logging.getLogger("ray").setLevel(logging.ERROR)

    try:
        client = JobSubmissionClient(address)
        return client.submit_job(
            entrypoint=shlex.join(command),
            runtime_env={
                "working_dir": str(ROOT),
                "excludes": list(NOT_SHIPPED),
                "env_vars": dict(variables),
            },
            metadata={"name": name},
        )
    except (ConnectionError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            f"the Ray cluster at {address} takes no job ({reason}): --cluster needs the address of "
            "the dashboard of a head with ray[default], and RAY_AUTH_TOKEN its token"
        ) from error


def job_states(jobs: Sequence[tuple[str, str]]) -> dict[tuple[str, str], RayJobState]:
    """The state of each job, named by the address of its cluster and its id.

    A head that does not answer is asked once, however many jobs it has.
    """
    states = dict[tuple[str, str], RayJobState]()
    silent = dict[str, str]()

    for address, job in dict.fromkeys(jobs):
        try:
            if address not in silent:
                states[address, job] = _state(_answer(address, f"/api/jobs/{job}"))
        except HTTPError as error:
            if error.code == 404:
                states[address, job] = RayJobState(UNKNOWN)
            else:
                silent[address] = str(error)
        except (OSError, HTTPException, ValueError) as error:
            silent[address] = str(error) or type(error).__name__
        if address in silent:
            states[address, job] = RayJobState(UNREACHABLE, silent[address])

    return states


def _state(details: Mapping) -> RayJobState:
    started_ms = details.get("start_time") or 0
    ended_ms = details.get("end_time") or time.time() * 1000
    elapsed_s = round((ended_ms - started_ms) / 1000) if started_ms else 0
    return RayJobState(details["status"], details.get("message") or "", max(0, elapsed_s))


def log(address: str, job: str) -> str:
    """All that a job has printed so far. ValueError when the head does not answer."""
    return str(_required(address, f"/api/jobs/{job}/logs")["logs"] or "")


def stop(address: str, job: str) -> None:
    """Ask Ray to end a job. ValueError when the head does not answer."""
    _required(address, f"/api/jobs/{job}/stop", "POST")


def unreachable(address: str, reason: str) -> str:
    """What to do about a head that gave no answer."""
    return (
        f"the Ray cluster at {address} does not answer ({reason}): whether the job runs is not "
        "known; start the head, or correct RAY_AUTH_TOKEN or the network"
    )


def remedy(address: str, seen: RayJobState, last_error: str = "") -> str:
    """What to do about a job that did not end well; nothing for any other."""
    match seen.state:
        case "FAILED":
            # Ray's sentence, and below it the end of the log: its last line says what happened.
            lines = seen.message.strip().splitlines() or ["failed"]
            return last_error or f"{lines[-1].strip()}; {AGAIN}"
        case "STOPPED":
            return f"stopped; {AGAIN}"
        case "HEAD_UNREACHABLE":
            return unreachable(address, seen.message)
        case "UNKNOWN":
            return f"the Ray cluster at {address} does not know the job (any more); {AGAIN}"
    return ""


def _required(address: str, path: str, method: str = "GET") -> dict:
    """The JSON that the head sends. ValueError says what to do when it sends none."""
    try:
        return _answer(address, path, method)
    except (OSError, HTTPException, ValueError) as error:
        raise ValueError(unreachable(address, str(error))) from error


def _answer(address: str, path: str, method: str = "GET") -> dict:
    """The JSON that the head sends. OSError when it does not answer in time, or with an error."""
    token = _token()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    request = Request(address.rstrip("/") + path, headers=headers, method=method)
    with urlopen(request, timeout=ANSWER_S) as response:
        return json.loads(response.read())


def _token() -> str:
    """The cluster's token, from where Ray's own client reads it."""
    if token := os.environ.get("RAY_AUTH_TOKEN"):
        return token
    file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    return file.read_text().strip() if file.is_file() else ""
