"""Runs of one recipe that differ in nothing but the seed of training, from the records of a
workspace.
"""

from collections.abc import Mapping, Sequence

from cluster.identity import Json, identity
from evaluate.results import Result, read_results
from pipeline.record import Record
from pipeline.step import Output, Step
from pipeline.store import Store

SEED = "seed"
MODEL = "model"


def results_by_seed(step: Step, store: Store) -> dict[int, Sequence[Result]]:
    """What the model of an evaluation step scored with each seed of its training.

    Nothing for a model that was not trained here.
    """
    model = step.inputs.get(MODEL)
    if not isinstance(model, Output):
        return {}

    # The same evaluation of another model: equal in all but the input "model", whose training is
    # equal in all but the seed.
    records = store.records()
    seeds = _seeds_of(model.step, records)
    wanted = (identity(step.config), _without(step.input_identities(), MODEL))
    results = {}

    # Records are sorted by their end: where a seed was evaluated twice, the newer one counts.
    for record in records:
        # An output as input is [fingerprint of its step, path in it]; a file is a digest.
        trained = record.inputs.get(MODEL, ("",))
        if record.step != step.name or not isinstance(trained, list) or trained[0] not in seeds:
            continue
        if (record.config, _without(record.inputs, MODEL)) == wanted:
            results[seeds[str(trained[0])]] = read_results(store.folder(record))

    return dict(sorted(results.items()))


def _seeds_of(train: Step, records: Sequence[Record]) -> dict[str, int]:
    """The seed of each training, by fingerprint, that is as this one otherwise."""
    # Identities leave out machine facts: a run on other workers is still the same training.
    config = identity(train.config)
    assert isinstance(config, dict)
    wanted = (_without(config, SEED), train.input_identities())
    seeds = {}

    for record in records:
        if record.step != train.name or not isinstance(record.config, dict):
            continue
        if (_without(record.config, SEED), record.inputs) == wanted:
            seeds[record.fingerprint] = int(str(record.config.get(SEED, 0)))

    return seeds


def _without(values: Mapping[str, Json], name: str) -> dict[str, Json]:
    return {key: value for key, value in values.items() if key != name}
