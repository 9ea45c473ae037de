# A fresh machine needs Python >= 3.11 and make; the rest is installed here.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
RUNS ?= runs
# cpu (half an hour), long (hours on a CPU) or full (the papers' own settings).
SCALE ?= cpu
AGAIN_FLAG := $(if $(AGAIN),--again)
PIECES := $(if $(MINUTES),--minutes=$(MINUTES)) $(if $(STATUS),--status)

.PHONY: help install demo test lint wheel faults long_runs benchmark gpu \
  hosts hosts_benchmark replicas_benchmark plan_check results reproduce \
  gallery report notebooks docs browser clean

help:
	@echo 'make demo       train on 8 replicas, compare the algorithms (a minute)'
	@echo 'make test       all tests (9 minutes; more with JAX 0.12)'
	@echo 'make lint       ruff, mypy, spelling and the list of words to avoid'
	@echo 'make wheel      a wheel in build/wheel, installed apart and run'
	@echo 'make faults     kill, signal, cut off and damage runs; resume them (6 minutes)'
	@echo 'make long_runs  200,000 steps: memory and work per record do not grow'
	@echo 'make hosts      every algorithm in 1, 2 and 4 processes (a quarter of an hour)'
	@echo 'make benchmark  the engine against hand-written loops (8 minutes)'
	@echo 'make gpu        one GPU: ways to compute replicas, in pieces (MINUTES=9; STATUS=1)'
	@echo 'make replicas_benchmark  16 to 1024 replicas on one device (2 minutes)'
	@echo 'make hosts_benchmark  algorithms on 4 hosts: seconds, bytes (root; 8 minutes)'
	@echo 'make plan_check  planned against measured seconds on 4 hosts (root; 15 minutes)'
	@echo 'make results    the runs of the results table (DATA_DIR=...; an hour)'
	@echo 'make reproduce  the papers: targets at CPU scale (DATA_DIR=...; half an hour)'
	@echo '                SCALE=long or full: hours, in pieces with MINUTES=10; STATUS=1'
	@echo '                AGAIN=1 replaces kept results'
	@echo 'make gallery    small experiments, a figure and three sentences each (DATA_DIR=...)'
	@echo 'make report     an HTML page of all reproductions'
	@echo 'make notebooks  run the notebooks, write their outputs (2 minutes)'
	@echo 'make docs       the documentation site, in docs/_build/html'
	@echo 'make browser    Chromium, in which tests open the report (Debian, root)'

install: $(INSTALLED)

$(INSTALLED): requirements.txt setup.cfg pyproject.toml
	@echo '== installing into $(VENV) with $(PYTHON) (some minutes, once)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

demo: $(INSTALLED)
	@echo '== digits, 8 replicas with unlike data, 3 seeds: SSGD, PR-SGD, one-shot'
	$(BIN)/python experiments/compare.py --flagfile=experiments/presets/demo.flags --seed=0 --workdir=$(RUNS)/demo/seed0
	$(BIN)/python experiments/compare.py --flagfile=experiments/presets/demo.flags --seed=1 --workdir=$(RUNS)/demo/seed1
	$(BIN)/python experiments/compare.py --flagfile=experiments/presets/demo.flags --seed=2 --workdir=$(RUNS)/demo/seed2
	$(BIN)/python experiments/plot.py $(RUNS)/demo --y=test_error --output=$(RUNS)/demo/demo.png

test: $(INSTALLED)
	@echo '== running the tests'
	$(BIN)/python -m pytest -n auto --dist loadfile

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell
	$(BIN)/python experiments/tools/words.py

# Installed apart and run, because a file that the wheel forgot is missed only there.
wheel: $(INSTALLED)
	rm -rf build/wheel
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir=build/wheel .
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target=build/wheel/installed build/wheel/*.whl
	cd build/wheel && PYTHONPATH=installed ../../$(BIN)/python installed/bin/prsgd-train --version
	cd build/wheel && PYTHONPATH=installed ../../$(BIN)/python installed/bin/prsgd-train \
	  --flagfile=installed/prsgd_jax/_programs/experiments/presets/digits_ssgd.flags \
	  --num_steps=8 --log_every=8 --eval_every=8 --workdir=run

faults: $(INSTALLED)
	$(BIN)/python tests/faults.py

hosts: $(INSTALLED)
	@echo '== every algorithm in 1, 2 and 4 processes: one trajectory'
	$(BIN)/python -m tests.hosts
	@echo '== every algorithm from N replicas on D devices onto other N and D'
	$(BIN)/python -m tests.elastic_matrix

long_runs: $(INSTALLED)
	$(BIN)/python tests/long_runs.py

benchmark: $(INSTALLED)
	$(BIN)/python experiments/benchmark.py --results=$(RUNS)/benchmark

gpu: $(INSTALLED)
	$(BIN)/python experiments/gpu_benchmark.py --gpu_dir=$(RUNS)/gpu --data_dir=$(DATA_DIR) $(PIECES)

replicas_benchmark: $(INSTALLED)
	$(BIN)/python experiments/replicas_benchmark.py --replicas_dir=$(RUNS)/replicas

hosts_benchmark: $(INSTALLED)
	$(BIN)/python experiments/hosts_benchmark.py --measurements=$(RUNS)/hosts
	$(BIN)/python experiments/hosts_report.py --measurements=$(RUNS)/hosts

plan_check: $(INSTALLED)
	$(BIN)/python experiments/plan_check.py --flagfile=experiments/presets/plan.flags --plan_results=$(RUNS)/plan_check

results: $(INSTALLED)
	$(BIN)/python experiments/tools/results.py --data_dir=$(DATA_DIR)

reproduce: $(INSTALLED)
	$(BIN)/python -m experiments.reproduce --data_dir=$(DATA_DIR) --scale=$(SCALE) $(AGAIN_FLAG) $(PIECES)

gallery: $(INSTALLED)
	$(BIN)/python -m experiments.make_gallery --data_dir=$(DATA_DIR) $(AGAIN_FLAG)

report: $(INSTALLED)
	$(BIN)/python experiments/report.py --reproductions --output=$(RUNS)/report.html

notebooks: $(INSTALLED)
	$(BIN)/python experiments/tools/execute_notebooks.py

docs: $(INSTALLED)
	@echo '== building the documentation, warnings as errors'
	JAX_PLATFORMS=cpu $(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo '== open docs/_build/html/index.html'

browser:
	@echo '== installing Chromium and its driver from Debian'
	apt-get update -qq
	DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends chromium chromium-driver

clean:
	rm -rf $(VENV) build *.egg-info docs/_build docs/_generated docs/api docs/notebooks
