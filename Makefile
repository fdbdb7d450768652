# make install  the environment in .venv (about 2 minutes and 7 GB); then: source .venv/bin/activate
# make demo   the environment, then real pictures through every stage to a report (about 7 minutes on 2 cores after the install)
# make demo-concepts  the same on emoji: the same thing drawn by several vendors, whole things held out; make demo-html  on HTML pages
# make test   the tests; make test-long  the long ones, before a release: workers, nodes and drivers killed in every stage, sweeps,
#             every command of the guides and of the README in a fresh clone
# make check  format, lint, import contracts, types
# make test-tpu  the tests of the TPU path, on XLA's CPU client, in an environment of its own (.venv-tpu)
# make fuzz   10,000 damaged pictures through the decoder
# make bench  the time of each stage and of a Fréchet distance into benchmarks/results/; make bench-data  the data plane against its peers
# make bench-training  the loader against its peers, and checkpoints; make bench-orderings  the paper's orderings, after make demo (hours; goes on when stopped)
# make bench-sweep  do early figures of a sweep rank the final ones, and what does stopping early save (after make demo)
# Everything runs in .venv, which the first target makes. Another Python: make PYTHON=python3.12 demo

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
VENV_TPU ?= .venv-tpu
TPU_INSTALLED := $(VENV_TPU)/.installed

.PHONY: install demo demo-concepts demo-html test test-long test-tpu fuzz check format bench bench-data bench-denoiser bench-training bench-orderings bench-sweep clean

install: $(INSTALLED)

demo: $(INSTALLED)
	@$(BIN)/semantica quickstart

demo-concepts: $(INSTALLED)
	@$(BIN)/semantica quickstart --preset tiny-concepts --source concepts --out runs/quickstart-concepts

demo-html: $(INSTALLED)
	@$(BIN)/semantica quickstart --preset tiny-html --source html-docs --out runs/quickstart-html

test: $(INSTALLED)
	@log=$$(mktemp) && echo "The tests on Ray run at the same time, into $$log" \
		&& { $(BIN)/python -m pytest -m "ray and not slow" --numprocesses 2 --dist loadfile > $$log 2>&1 & } && ray=$$! && trap "kill $$ray; exit 130" INT TERM; status=0; \
		$(BIN)/python -m pytest -m "not ray and not slow" --numprocesses auto --dist loadfile || status=$$?; \
		wait $$ray || status=$$?; cat $$log; rm $$log; exit $$status

test-tpu: $(TPU_INSTALLED)
	PJRT_DEVICE=CPU $(VENV_TPU)/bin/python -m pytest tests/tpu

fuzz: $(INSTALLED)
	$(BIN)/python -m pytest -s -m slow tests/episodes/test_fuzz.py

test-long: $(INSTALLED)
	$(BIN)/python -m pytest -m slow

check: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(INSTALLED)
	$(BIN)/python -m benchmarks.stages
	$(BIN)/python -m benchmarks.frechet

bench-data: $(INSTALLED)
	$(BIN)/python -m benchmarks.decode
	$(BIN)/python -m benchmarks.encode
	$(BIN)/python -m benchmarks.pairs
	$(BIN)/python -m benchmarks.memory
	$(BIN)/python -m benchmarks.orchestration
	$(BIN)/python -m benchmarks.plan
	$(BIN)/python -m benchmarks.scaling

bench-denoiser: $(INSTALLED)
	$(BIN)/python -m benchmarks.train_step
	$(BIN)/python -m benchmarks.sampling
	$(BIN)/python -m benchmarks.control

bench-training: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --requirement benchmarks/loader-peers.txt
	$(BIN)/python -m benchmarks.loader
	$(BIN)/python -m benchmarks.checkpoint

bench-orderings: $(INSTALLED)
	$(BIN)/python -m benchmarks.orderings

bench-sweep: $(INSTALLED)
	$(BIN)/python -m benchmarks.sweep

clean:
	rm -rf $(VENV) $(VENV_TPU) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
		|| { echo "error: $(PYTHON) is $$($(PYTHON) --version 2>&1); Python 3.11, 3.12 or 3.13 is needed. Try: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 2; }
	@echo "Making the environment in $(VENV): about 2 minutes and 7 GB, once."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	@touch $(INSTALLED)

# What constraints.txt pins, but for the torch that torch-xla was released for.
$(TPU_INSTALLED): pyproject.toml constraints.txt constraints-tpu.txt
	@echo "Making the environment of torch-xla in $(VENV_TPU): about 4 minutes and 8 GB, once."
	@$(PYTHON) -m venv $(VENV_TPU)
	@grep -vE '^(torch|torchvision|triton)==' constraints.txt | cat - constraints-tpu.txt > $(VENV_TPU)/constraints.txt
	@$(VENV_TPU)/bin/python -m pip install --quiet --disable-pip-version-check --constraint $(VENV_TPU)/constraints.txt \
		--editable ".[tpu]" beartype pytest
	@touch $(TPU_INSTALLED)
