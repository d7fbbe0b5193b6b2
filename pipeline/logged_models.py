"""Trained models as MLflow's logged models: the complete exported folder behind `predict`, with the
scores of every evaluation set; and the registry.

A model is logged once, by the fingerprint of its train step. It classifies pictures by names:
`mlflow models serve` needs transformers and torch, but nothing of this project.
"""

import importlib.metadata
import io
import logging
import time
import warnings
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import mlflow
import pandas
from mlflow import MlflowClient
from mlflow.entities import LoggedModelInput, LoggedModelOutput, Metric
from mlflow.models import Model, ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema

from cluster.identity import identity
from evaluate.results import read_results
from pipeline.experiments import experiment_of, tracking_uri
from pipeline.exported import step_subject
from pipeline.fingerprint import digest
from pipeline.recipes import Recipe
from pipeline.step import Step, in_order
from pipeline.store import Store
from pipeline.tracking import NO_METRIC_NAME, flatten
from train.export.huggingface import backbone_reference, write_huggingface
from train.export.probe import noise_image
from train.export.shipped import serving_dinotxt
from train.export.subject import Subject

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # MLflow warns of type hints of its own
    import mlflow.pyfunc

FINGERPRINT = "fingerprint"
SCORED = "scored"  # tag with the fingerprint of the evaluation whose scores the model has
NEEDED = ("torch", "transformers", "numpy", "pillow", "safetensors", "sentencepiece", "mlflow")
PARAM_CHARS = 500
MOST_PARAMS = 100

logger = logging.getLogger(__name__)


def log_models(recipe: Recipe, steps: Sequence[Step], store: Store) -> dict[str, str]:
    """The identity of the logged model of every train step that is finished, by its label; what is
    not there yet is logged.
    """
    client = _client(store)
    experiment = experiment_of(client, store.workspace, recipe.name)
    by_label = {step.label: step for step in in_order(steps)}

    models = dict[str, str]()

    for step in by_label.values():
        if step.name != "train" or store.record(step) is None:
            continue
        model = _find_model(client, experiment, step)
        if model is None:
            subject = step_subject(
                recipe, steps, step, store, Namespace(backbone="copy", int8=False)
            )
            model = _log_model(client, experiment, step, _light(subject))

        scores = by_label.get(step.label.replace("train", "evaluate", 1))
        if scores is not None and store.record(scores):
            _link_scores(client, experiment, model, scores, store)
        models[step.label] = model

    return models


def register(store: Store, model: str, name: str) -> str:
    """The number of a new version, in the registry, of a logged model; the one that is there where
    it is registered under this name already.
    """
    source = f"models:/{model}"
    versions = _client(store).search_model_versions(f"name = '{name}'")
    known = [version.version for version in versions if version.source == source]
    return str(known[0] if known else mlflow.register_model(source, name).version)


def _client(store: Store) -> MlflowClient:
    """The workspace's MLflow, also for what MLflow itself looks up: the registry asks the process's
    own server for the model.
    """
    uri = tracking_uri(store.workspace)
    mlflow.set_tracking_uri(uri)
    return MlflowClient(uri)


def _find_model(client: MlflowClient, experiment: str, step: Step) -> str | None:
    same = client.search_logged_models([experiment], f"tags.{FINGERPRINT} = '{step.fingerprint}'")
    ready = [model.model_id for model in same if model.status == "READY"]
    return ready[0] if ready else None


def _light(subject: Subject) -> Subject:
    """With the backbone by name, revision and digest where its weights are on the hub; else with a
    copy.
    """
    try:
        backbone_reference(subject, subject.whole_backbone("a logged model"))
    except ValueError:
        return subject
    return replace(subject, backbone_form="reference")


def _log_model(client: MlflowClient, experiment: str, step: Step, subject: Subject) -> str:
    """Write the model's folder and hand it to MLflow."""
    run = _run_of(client, experiment, step)
    params = {
        name: str(value)[:PARAM_CHARS] for name, value in flatten(identity(step.config)).items()
    }
    logged = client.create_logged_model(
        experiment,
        name=step.label.replace("@", "-"),
        source_run_id=run,
        tags={FINGERPRINT: step.fingerprint, "step": step.label, **subject.facts.source},
        params=dict(list(params.items())[:MOST_PARAMS]),
        model_type="dino.txt",
    )

    with TemporaryDirectory() as temporary:
        folder = Path(temporary) / "huggingface"
        folder.mkdir()
        write_huggingface(folder, subject)
        written = Path(temporary) / "model"
        about = Model(artifact_path=logged.artifact_location, run_id=run, model_id=logged.model_id)
        write_pyfunc(written, folder, about)
        client.log_model_artifacts(logged.model_id, str(written))

    client.finalize_logged_model(logged.model_id, "READY")
    if run:
        client.log_outputs(run, [LoggedModelOutput(logged.model_id, step=0)])

    return logged.model_id


def write_pyfunc(to: Path, folder: Path, about: Model | None = None) -> None:
    """A Hugging Face folder as MLflow's pyfunc, with signature, requirements and an example."""
    signature = ModelSignature(
        inputs=Schema([ColSpec(DataType.binary, "image")]),
        params=ParamSchema(
            [
                ParamSpec("names", DataType.string, list(serving_dinotxt.NAMES), shape=(-1,)),
                ParamSpec("template", DataType.string, serving_dinotxt.TEMPLATE),
            ]
        ),
    )
    example = pandas.DataFrame({"image": [_example_image()]})
    names = {"names": list(serving_dinotxt.NAMES), "template": serving_dinotxt.TEMPLATE}

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow's advice on signatures that are written by hand
        mlflow.pyfunc.save_model(
            to,
            loader_module="serving_dinotxt",
            data_path=str(folder),
            code_paths=[str(serving_dinotxt.__file__)],
            mlflow_model=about,
            signature=signature,
            input_example=(example, names),
            pip_requirements=[
                f"{package}=={importlib.metadata.version(package)}" for package in NEEDED
            ],
        )


def _example_image() -> bytes:
    """A small picture as a JPEG file."""
    buffer = io.BytesIO()
    noise_image(0, 48).save(buffer, "JPEG")
    return buffer.getvalue()


def _link_scores(
    client: MlflowClient, experiment: str, model: str, step: Step, store: Store
) -> None:
    """Log the scores of every evaluation set to the run that measured them, with the model that
    they are of.
    """
    run = _run_of(client, experiment, step)
    tags = client.get_logged_model(model).tags
    if run is None or tags.get(SCORED) == step.fingerprint:
        return

    now = int(time.time() * 1000)
    scores = [
        Metric(
            NO_METRIC_NAME.sub("_", f"{result['set']}/{name}"),
            measure["value"],
            now,
            0,
            model_id=model,
            dataset_name=result["set"],
            dataset_digest=digest(result["data"]),
            run_id=run,
        )
        for result in read_results(store.folder(step))
        for name, measure in result["metrics"].items()
    ]
    client.log_inputs(run, models=[LoggedModelInput(model)])
    client.log_batch(run, metrics=scores)
    client.set_logged_model_tags(model, {SCORED: step.fingerprint})


def _run_of(client: MlflowClient, experiment: str, step: Step) -> str | None:
    """The newest run of a step."""
    runs = client.search_runs(
        [experiment], f"tags.{FINGERPRINT} = '{step.fingerprint}'", max_results=1
    )
    return runs[0].info.run_id if runs else None
