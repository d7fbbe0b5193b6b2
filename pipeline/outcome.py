"""What a run has come to, as MLflow shows it: scores, files, the data that were read, and a note
with the table of results.

Read from the records of the workspace, so that a step that was cached counts like one that ran.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from evaluate.results import Result, read_results
from evaluate.tables import as_markdown
from pipeline.fingerprint import digest
from pipeline.step import Output, Step
from pipeline.store import Store

NOTE_CHARS = 7000  # MLflow's tags hold 8,000


@dataclass(frozen=True)
class ReadData:
    """One data set that a step read."""

    name: str
    digest: str
    rows: int
    """Pairs, or images of an evaluation set."""
    source: str
    """Path of what was read."""
    context: str
    """pool, training or evaluation."""


@dataclass(frozen=True)
class Outcome:
    """What the records of a recipe's finished steps say."""

    metrics: Mapping[str, float] = field(default_factory=dict)
    """Scores of every model."""
    artifacts: Mapping[str, Path] = field(default_factory=dict)
    """Files to keep, by the folder that they go to."""
    data: Mapping[str, Sequence[ReadData]] = field(default_factory=dict)
    """What each step read, by its label."""
    note: str = ""
    """Markdown."""


def read_outcome(ordered: Sequence[Step], store: Store) -> Outcome:
    """The outcome of the steps that are finished."""
    metrics = dict[str, float]()
    artifacts = dict[str, Path]()
    data = dict[str, list[ReadData]]()

    for step in ordered:
        record = store.record(step)
        if record is None:
            continue
        data[step.label] = list(_read_by(step, store))
        if step.name == "evaluate":
            # MLflow refuses names of metrics with an @, which labels of arms have.
            metrics |= {
                f"{step.label}/{name}".replace("@", "."): value
                for name, value in record.summary.items()
            }
            artifacts[step.label] = store.folder(step) / "results.json"
        if step.name == "report":
            artifacts[step.label] = store.folder(step) / "report.html"

    return Outcome(metrics, artifacts, data, _note(ordered, store, artifacts.get("report")))


def results_by_model(ordered: Sequence[Step], store: Store) -> dict[str, list[Result]]:
    """All results of each model whose evaluation is finished, by the model's name."""
    return {
        name: read_results(store.folder(step))
        for name, step in scored_models(ordered, store).items()
    }


def scored_models(ordered: Sequence[Step], store: Store) -> dict[str, Step]:
    """The evaluations that are finished, by the names of their models."""
    # The main arm has a label without an arm's name: beside others it is called by its arm.
    done = [step for step in ordered if step.name == "evaluate" and store.record(step)]
    name = "curated" if len(done) > 1 else "model"
    return {step.label.partition("@")[2] or name: step for step in done}


def _read_by(step: Step, store: Store) -> Iterator[ReadData]:
    """The pool that was embedded, the selection that was trained on, the sets that were scored."""
    record = store.record(step)
    assert record is not None

    if step.name == "embed":
        source = step.inputs["source"]
        yield ReadData(
            name=source.step.label if isinstance(source, Output) else source.name,
            digest=digest(record.inputs["source"]),
            rows=int(record.summary["rows"]),
            source=str(store.resolve(source)),
            context="pool",
        )

    selection = step.inputs.get("selection")
    if step.name == "train" and isinstance(selection, Output):
        selected = store.record(selection.step)
        yield ReadData(
            name=selection.step.label.replace("@", "."),
            digest=selection.step.fingerprint,
            rows=int(selected.summary["kept"]) if selected else 0,
            source=str(store.resolve(selection)),
            context="training",
        )

    if step.name == "evaluate":
        for result in read_results(store.folder(step)):
            named = step.inputs.get(result["set"])
            yield ReadData(
                name=result["set"],
                digest=digest(result["data"]),
                rows=result["sizes"].get("images", 0),
                source=str(store.resolve(named)) if named else result["set"],
                context="evaluation",
            )


def _note(ordered: Sequence[Step], store: Store, report: Path | None) -> str:
    """The table of results as Markdown, cut at a line where it is too long, and where the report
    is.
    """
    lines = as_markdown(results_by_model(ordered, store)).splitlines() if ordered else []
    shown = list[str]()
    for line in lines:
        # The characters so far, a line end after each, and this line.
        if sum(map(len, shown)) + len(shown) + len(line) > NOTE_CHARS:
            shown += ["", "The report has the rest."]
            break
        shown.append(line)

    place = [f"Report: `{report}`", ""] if report else []
    caption = ["Results in percent, ± half of the 95 % interval:", ""] if shown else []
    return "\n".join([*place, *caption, *shown])
