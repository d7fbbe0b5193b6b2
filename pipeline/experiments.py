"""MLflow: where runs are recorded, the experiment of a recipe, and what started a run."""

import getpass
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.provenance import git_state

if TYPE_CHECKING:
    import mlflow

SETTINGS = {  # read when MLflow is imported
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
TRAINING = "custom_model_development"  # the kind of experiment that opens on runs, not on traces
DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
KIND = "mlflow.experimentKind"


def tracking_uri(workspace: Path) -> str:
    """`$MLFLOW_TRACKING_URI` if set, else the workspace's own database by absolute path."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{workspace.resolve()}/mlflow.db"


def prepare_mlflow() -> None:
    """Short timeouts and quiet logs, unless the environment says otherwise; call before MLflow is
    imported.
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)


def experiment_of(client: "mlflow.MlflowClient", workspace: Path, recipe: str) -> str:
    """The identity of the experiment of a recipe, made where it is missing, of the kind that opens
    on training runs.
    """
    experiment = client.get_experiment_by_name(recipe)
    if experiment is None:
        # A server has a place for files; with a database alone, MLflow would take the present folder.
        is_database = tracking_uri(workspace).startswith(DATABASES)
        artifacts = f"{workspace.resolve().as_uri()}/mlartifacts" if is_database else None
        return _made_experiment(client, recipe, artifacts)

    if KIND not in experiment.tags:  # made by an earlier version
        client.set_experiment_tag(experiment.experiment_id, KIND, TRAINING)
    return experiment.experiment_id


def _made_experiment(client: "mlflow.MlflowClient", recipe: str, artifacts: str | None) -> str:
    """The identity of a new experiment, or of one that another process made at the same moment."""
    from mlflow.exceptions import MlflowException

    # No lock holds for processes on other machines: the database decides who makes it.
    try:
        return client.create_experiment(recipe, artifacts, tags={KIND: TRAINING})
    except MlflowException:
        experiment = client.get_experiment_by_name(recipe)
        if experiment is None:
            raise
        return experiment.experiment_id


def origin() -> dict[str, str]:
    """What started a run, as MLflow's own tags."""
    commit, dirty = git_state()
    return {
        "mlflow.user": _user(),
        "mlflow.source.name": shlex.join(["python", "-m", "pipeline", *sys.argv[1:]]),
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": commit,
        "mlflow.source.git.dirty": str(dirty).lower(),
    }


def _user() -> str:
    """The name of the user; the number where the machine knows no name for it."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"
