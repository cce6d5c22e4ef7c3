# cspine_kit: `make demo` runs the whole chain on a synthetic competition, `make test` the tests.
# Both work from an empty clone with Python 3.11+ and make; other targets take CONFIG=configs/....yaml.

CONFIG ?= configs/demo.yaml
GRID ?= configs/grids/crop.yaml
PYTHON ?= python3
VENV ?= .venv
CSPINE = $(VENV)/bin/cspine
READY = $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: sources notebooks help demo test test-all oof stack kernel rehearse push train-kaggle score report leaderboard info lint backbones ablate finder bench viewer

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[dev]'
	touch $(READY)

demo: $(READY)  ## the whole chain on the phantom competition: write it, train, stack, ship, score
	$(CSPINE) oof --config configs/demo.yaml
	$(CSPINE) stack --config configs/demo.yaml
	$(CSPINE) bundle --config configs/demo.yaml
	$(CSPINE) kernel --config configs/demo.yaml
	$(CSPINE) score --config configs/demo.yaml
	$(CSPINE) report --config configs/demo.yaml

test: $(READY) lint  ## lint, types, unit tests and a tiny end-to-end run
	$(VENV)/bin/python -m pytest -m "not slow"

test-all: $(READY) lint  ## these and the slow ones: kills, faults, a whole rehearsal; what CI runs
	$(VENV)/bin/python -m pytest

lint: $(READY)  ## ruff and mypy
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

oof: $(READY)  ## everything missing up to the out-of-fold slice table
	$(CSPINE) oof --config $(CONFIG)

stack: $(READY)  ## aggregated statistics, nested LightGBM stack, score table
	$(CSPINE) stack --config $(CONFIG)

kernel: $(READY)  ## offline Kaggle dataset (oof/<name>/bundle) and kernels/submit
	$(CSPINE) bundle --config $(CONFIG)

rehearse: $(READY)  ## CONFIG's bundle run as Kaggle will, on hostile studies too: one page of verdicts
	$(CSPINE) bundle --config $(CONFIG)
	$(CSPINE) rehearse --config $(CONFIG)

push: $(READY)  ## the real kaggle client: dataset, kernel, its checked output; ARGS='--dry-run' or '--submit'
	$(CSPINE) bundle --config $(CONFIG)
	$(CSPINE) push --config $(CONFIG) $(ARGS)

train-kaggle: $(READY)  ## CONFIG's networks trained where the data lies, fetched and collected; ARGS=--dry-run
	$(CSPINE) push --train --config $(CONFIG) $(ARGS)
	$(if $(findstring --dry-run,$(ARGS)),,$(CSPINE) oof --config $(CONFIG))

score: $(READY)  ## results of CONFIG's submission: table, hidden truth where known, ledger row
	$(CSPINE) score --config $(CONFIG)

report: $(READY)  ## one page that shows CONFIG's run, whatever its state: oof/<name>/report.html
	$(CSPINE) report --config $(CONFIG)

backbones: $(READY)  ## accuracy and time of backbones on CONFIG's masked studies; ARGS='--names ...'
	$(CSPINE) backbones --config $(CONFIG) $(ARGS)

ablate: $(READY)  ## GRID's changes of CONFIG, one at a time, each scored beside CONFIG itself; ARGS='--seeds 2'
	$(CSPINE) ablate --config $(CONFIG) --grid $(GRID) $(ARGS)

sources: $(READY)  ## the five source documents' systems, small, beside the kit's own three members: one table
	$(CSPINE) ablate --config configs/sources/small.yaml --grid configs/grids/sources.yaml

finder: $(READY)  ## draw phantoms, train the level finder that ships, write its weights and card
	$(CSPINE) finder --config configs/finder.yaml

viewer: $(READY)  ## a page on this machine only: drop a scan, see what CONFIG's bundle says of it
	$(CSPINE) viewer --bundle oof/$(basename $(notdir $(CONFIG)))/bundle --phantoms oof/$(basename $(notdir $(CONFIG)))/competition/test_images

notebooks: $(READY)  ## kernels/notebooks/*.ipynb from the sources beside them
	$(VENV)/bin/jupytext --to ipynb kernels/notebooks/*.py

bench: $(READY)  ## every benchmark, side by side in one run, and one table with the goals; ARGS='--only reader kernel'
	$(VENV)/bin/python tests/benchmarks/bench_all.py $(ARGS)

leaderboard: $(READY)  ## local submissions beside the real final leaderboard
	$(CSPINE) leaderboard

info: $(READY)  ## what exists, what is stale, what is next, how fast this machine is
	$(CSPINE) info --config $(CONFIG)
