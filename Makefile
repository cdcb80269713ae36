# The two commands of the README, and their helpers. `make help` lists them.
#
# EXTRA=gpu   installs vLLM's CUDA build instead of the CPU one (default cpu; never both in one environment)
# DETACH=1    leaves the job running unwatched; otherwise Ctrl-C stops it (a training saves a checkpoint first)
# RAY_ADDRESS in the environment: submit to that cluster, start nothing here

EXTRA ?= cpu
CONFIG ?= jobs/configs/gdso_tiny.yaml
# Exact versions of the whole tree; CONSTRAIN= (empty) lets them move
CONSTRAIN ?= -c constraints/$(EXTRA).txt
# Overrides and switches of the job, for example ARGS='gdso.steps=10 --dry-run'
ARGS ?=
# The first interpreter that fits pyproject's requires-python
PYTHON ?= $(shell for p in python3.12 python3.11 python3; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2>/dev/null && { echo $$p; break; }; done)

VENV := .venv
STAMP := $(VENV)/.installed-$(EXTRA)
# DeepSpeed compiles an operator at first use: once per checkout, not once per process
export TORCH_EXTENSIONS_DIR ?= $(CURDIR)/.cache/torch_extensions
WARM_UP := from zr_ray.workers.operators import load_collective; load_collective()
export RAY_USAGE_STATS_ENABLED := 0

.PHONY: help gdso serve t2i all test test-slow test-cluster field gpu-check check install constraints stop clean
help:
	@echo "make gdso   train the built-in judge on the simulated rubric world, as a Ray job (EXTRA, CONFIG, ARGS, RAY_ADDRESS)"
	@echo "make serve  the reward service on the built-in student, on http://127.0.0.1:8000/reward, until Ctrl-C (ARGS, RAY_ADDRESS)"
	@echo "make t2i    post-train the built-in generator with the served built-in student, as a Ray job (ARGS, RAY_ADDRESS)"
	@echo "make all    teacher, student, is it a fit reward, generator: one after the other, as a Ray job (ARGS, RAY_ADDRESS)"
	@echo "make test   run the tests but the slow ones (ARGS='-k name' picks some)"
	@echo "make test-slow   run the slow ones: real architectures, whole chains, fuzz, a browser (at most 40 minutes on two cores)"
	@echo "make test-cluster   run those with clusters of their own: two nodes, autoscaler, stops, preemption, kills (at most 40, too)"
	@echo "make gpu-check   what a machine with GPUs is asked once (ZR_GPU_JUDGE=folder measures that judge)"
	@echo "make field  run every row of tests/field.toml, inputs that stopped real users, and print a line per row (ARGS='words')"
	@echo "make check  lint, format, types, imports between rooms"
	@echo "make constraints   resolve the exact versions of all dependencies anew (constraints/)"
	@echo "make stop   end the local Ray head that make gdso started"
	@echo "make clean  remove environment and caches; runs/ stays"

gdso: $(STAMP)
	@if [ -z "$$RAY_ADDRESS" ]; then exports=$$($(VENV)/bin/python cluster/local_head.py start) || exit 1; eval "$$exports"; fi; \
	exec $(VENV)/bin/python cluster/submit.py --name gdso $(if $(DETACH),--detach) -- python jobs/gdso.py --config $(CONFIG) $(ARGS)

serve: $(STAMP)
	@if [ -z "$$RAY_ADDRESS" ]; then exports=$$($(VENV)/bin/python cluster/local_head.py start) || exit 1; eval "$$exports"; fi; \
	exec $(VENV)/bin/python cluster/submit.py --name serve $(if $(DETACH),--detach) -- python jobs/serve_reward.py $(ARGS)

t2i: $(STAMP)
	@if [ -z "$$RAY_ADDRESS" ]; then exports=$$($(VENV)/bin/python cluster/local_head.py start) || exit 1; eval "$$exports"; fi; \
	exec $(VENV)/bin/python cluster/submit.py --name t2i $(if $(DETACH),--detach) -- python jobs/t2i.py --config jobs/configs/t2i_tiny.yaml $(ARGS)

all: $(STAMP)
	@if [ -z "$$RAY_ADDRESS" ]; then exports=$$($(VENV)/bin/python cluster/local_head.py start) || exit 1; eval "$$exports"; fi; \
	exec $(VENV)/bin/python cluster/submit.py --name chain $(if $(DETACH),--detach) -- python jobs/chain.py --config jobs/configs/chain_tiny.yaml $(ARGS)

PYTEST = PATH="$(CURDIR)/$(VENV)/bin:$$PATH" $(VENV)/bin/python -m pytest -n 2 --dist loadgroup

test: $(STAMP)
	$(PYTEST) -m "not slow and not cluster and not gpu" $(ARGS)

test-slow: $(STAMP)
	$(PYTEST) -m slow $(ARGS)

test-cluster: $(STAMP)
	$(PYTEST) -m cluster $(ARGS)

gpu-check: $(STAMP)
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" $(VENV)/bin/python -m pytest -m gpu -s -rs tests/gpu $(ARGS)

field: $(STAMP)
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" $(VENV)/bin/python -m tests.field --dist=loadgroup -n2 $(ARGS)

check: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/python -m pytest tests/test_rooms.py

constraints: $(STAMP)
	$(VENV)/bin/python constraints/renew.py

install: $(STAMP)

$(STAMP): pyproject.toml constraints/$(EXTRA).txt
	@test -n "$(PYTHON)" || { echo "zr_ray needs Python 3.11 or 3.12; install one, or name it: make PYTHON=/path/to/python3.11"; exit 1; }
	@if [ -d $(VENV) ] && ls $(VENV)/.installed-* 2>/dev/null | grep -qvx $(STAMP); then \
		echo "$(VENV) holds the other set of extras (cpu and gpu exclude one another): making it anew"; rm -rf $(VENV); fi
	$(PYTHON) -m venv $(VENV)
	@echo "installing the pinned set of pyproject.toml with [$(EXTRA),dev]: about 4 GB, some minutes"
	@$(VENV)/bin/python -m pip install -qq --disable-pip-version-check --no-compile $(CONSTRAIN) -e '.[$(EXTRA),dev]'
	@$(VENV)/bin/python -m compileall -qq -j 0 $(VENV)/lib || true  # on every core, where pip uses one; files that are templates do not compile
	@if [ $(EXTRA) = cpu ]; then echo "compiling DeepSpeed's shared-memory collective (once)"; \
		PATH="$(CURDIR)/$(VENV)/bin:$$PATH" DS_ACCELERATOR=cpu $(VENV)/bin/python -c "$(WARM_UP)" > /dev/null; fi
	@touch $@

stop:
	@if [ -x $(VENV)/bin/python ]; then $(VENV)/bin/python cluster/local_head.py stop; fi

clean: stop
	rm -rf $(VENV) .cache build *.egg-info .pytest_cache
