"""A command as a job of a Ray cluster, through Ray's Jobs API."""

import shlex
from collections.abc import Sequence

from cluster.session import NOT_SHIPPED, ROOT


def submit(address: str, command: Sequence[str], name: str) -> str:
    """Submit a command to the cluster whose dashboard is at `address`, and return the job's id.

    The five packages travel with it. ValueError when nobody answers there, or refuses.
    """
    from ray.job_submission import JobSubmissionClient

    try:
        client = JobSubmissionClient(address)
        return client.submit_job(
            entrypoint=shlex.join(command),
            runtime_env={"working_dir": str(ROOT), "excludes": list(NOT_SHIPPED)},
            metadata={"name": name},
        )
    except (ConnectionError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            f"the Ray cluster at {address} takes no job ({reason}): --cluster needs the address of "
            "the dashboard of a head with ray[default], and RAY_AUTH_TOKEN its token"
        ) from error
