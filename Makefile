# Every target sets up what it needs in .venv by itself. Versions: constraints.txt (pip, for torch's CPU build).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
VLLM := .venv-vllm
TRACKERS := .venv-trackers
RUN := HF_HUB_OFFLINE=1 $(BIN)

COMPARISONS := sample tune score round image

.PHONY: quickstart quickstart-image test test-vllm test-ui test-trackers vllm check docs docs-cli bench bench-page bench-reward clean

quickstart: $(VENV)/.core  ## a real model gets better at what a reward asks, in minutes
	@$(RUN)/raftune run recipes/quickstart.yaml --out runs/quickstart

quickstart-image: $(VENV)/.image  ## a diffusion model learns to draw what it has never seen, in minutes
	@$(RUN)/raftune run recipes/quickstart-image.yaml --out runs/quickstart-image

test: $(VENV)/.dev  ## under ten minutes on two cores, no GPU, no model hub
	@$(RUN)/python -c "from raftune.assets import ASSETS, fetch; [fetch(name) for name in ASSETS]"  # real models, once
	@OMP_NUM_THREADS=1 $(RUN)/python -m pytest --numprocesses logical --maxprocesses 8

vllm: $(VLLM)/.ready  ## an environment of its own with vLLM's CPU build: .venv-vllm/bin/raftune run … --set sample.backend=vllm

test-vllm: $(VLLM)/.ready  ## the real engine and the real server, on the real model: a quarter of an hour
	@HF_HUB_OFFLINE=1 $(VLLM)/bin/python -m pytest -W default tests_vllm

test-ui: $(VENV)/.ui  ## report and app in Debian's Chromium, on both quickstart runs: screenshots in runs/screenshots
	@test -d runs/quickstart/rounds || $(MAKE) quickstart
	@test -d runs/quickstart-image/rounds || $(MAKE) quickstart-image
	@HF_HUB_OFFLINE=1 $(BIN)/python -m pytest tests_ui

test-trackers: $(TRACKERS)/.ready  ## the trackers' tests beside real wandb and mlflow, which ask for older packages than ours
	@HF_HUB_OFFLINE=1 $(TRACKERS)/bin/python -m pytest -W default tests/test_track.py

check: $(VENV)/.dev  ## format, lint, types, links of docs/
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/pyright
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

docs: $(VENV)/.dev  ## the site of docs/ into site/; a link or an anchor that leads nowhere is an error
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

docs-cli: $(VENV)/.dev  ## docs/cli.md anew, from the commands themselves
	@$(BIN)/python -m typer raftune.cli utils docs --name raftune --title "Command line" --output docs/cli.md

bench: $(VENV)/.bench .venv-trl/.ready  ## paired comparisons, then docs/benchmarks.md; ONLY=sample: one; PAIRS=1: turns; ANEW=1: drop former sessions
	@for one in $(or $(ONLY),$(COMPARISONS)); do $(RUN)/python bench/$$one.py $(if $(PAIRS),--pairs $(PAIRS)) $(if $(ANEW),--anew) || exit 1; done
	@$(RUN)/python bench/page.py

bench-page: $(VENV)/.bench  ## docs/benchmarks.md from the results that lie in docs/benchmarks
	@$(RUN)/python bench/page.py

bench-reward: $(VENV)/.bench  ## seconds to a given reward against GRPO and RLOO: hours, resumable; OPTIONS='--cpus 0 --cpus 1 --threads 1'
	@$(RUN)/python bench/time_to_reward.py $(OPTIONS)
	@$(RUN)/python bench/page.py

clean:
	@rm -rf $(VENV) $(VLLM) $(TRACKERS) .venv-trl .pytest_cache .ruff_cache

$(VENV)/bin/python:
	@$(PYTHON) -m venv $(VENV)

# torch first and by version, so that no other package pulls its own choice of it
define install
	@$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt torch
	@$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[$(1)]'
	@touch $@
endef

$(VENV)/.core: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(call install,assets$(comma)vader$(comma)report)

$(VENV)/.image: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(call install,image$(comma)report)

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(call install,dev)

$(VENV)/.ui: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(call install,dev$(comma)browser)

$(VENV)/.bench: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(call install,dev$(comma)bench)

# The peers of TRL's sides: TRL and all that it needs at their newest, but for torch, which is the same for all
.venv-trl/.ready: constraints.txt
	@$(PYTHON) -m venv .venv-trl
	@.venv-trl/bin/pip install -q --disable-pip-version-check -c constraints.txt torch
	@.venv-trl/bin/pip install -q --disable-pip-version-check -U trl -e '.[assets,vader]'
	@touch $@

$(VLLM)/.ready: pyproject.toml constraints-vllm.txt
	@test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	@$(VLLM)/bin/pip install -q --disable-pip-version-check --no-deps -r constraints-vllm.txt
	@$(VLLM)/bin/pip install -q --disable-pip-version-check --no-deps -e .
	@touch $@

$(TRACKERS)/.ready: pyproject.toml constraints.txt
	@test -x $(TRACKERS)/bin/python || $(PYTHON) -m venv $(TRACKERS)
	@$(TRACKERS)/bin/pip install -q --disable-pip-version-check -c constraints.txt torch
	@$(TRACKERS)/bin/pip install -q --disable-pip-version-check -e '.[assets,vader,report,image,trackers]' wandb 'mlflow>=3' pytest hypothesis
	@touch $@

comma := ,
