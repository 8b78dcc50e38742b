# Two commands do everything on a fresh machine: `make demo` and `make test`.

VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip install --quiet --quiet --disable-pip-version-check
DEMO := demo

# An environment knows its folder by absolute path: a moved one is made anew.
ifneq ($(shell cat $(VENV)/.root 2>/dev/null),$(CURDIR))
STALE := FORCE
endif

.PHONY: help demo test proof lint clean FORCE

help:
	@echo 'make demo    make the environment, capture and analyse the embedded example, say where the report is'
	@echo 'make test    make the environment, check style and types, run all tests'
	@echo 'make proof   run the proofs of the store with the figures of a release (hours) and write docs/proof.md'
	@echo 'make lint    check style and types only'
	@echo 'make clean   remove the environment, the example and the build products'

# One thread: the model is so small that a second one only waits for the first.
demo: $(VENV)/.capture
	$(VENV)/bin/capture-run demo --workers 1 --store $(DEMO)/demo.zarr
	$(VENV)/bin/analyze --store $(DEMO)/demo.zarr --out $(DEMO)/analysis
	@echo
	@echo 'The report: $(CURDIR)/$(DEMO)/analysis/report.html'

# A process for each core, up to four: each of them holds torch. One thread each: the models are tiny.
test: lint
	OMP_NUM_THREADS=1 $(PY) -m pytest --numprocesses logical --maxprocesses 4 --dist worksteal

# One number can be asked for: LORASCOPE_PROOF_KILLS=20000; see tests/conftest.py.
proof: $(VENV)/.test
	mkdir -p build && rm -f build/proof.jsonl
	LORASCOPE_PROOF=$${LORASCOPE_PROOF-release} LORASCOPE_PROOF_LOG=build/proof.jsonl $(PY) -m pytest tests/proof tests/attacks
	$(PY) -m tests.proof.report build/proof.jsonl docs/proof.md

lint: $(VENV)/.test
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(PY) -m pyright --pythonpath $(PY)

clean:
	rm -rf $(VENV) $(DEMO) build dist .pytest_cache .ruff_cache .hypothesis lorascope.egg-info

$(VENV)/.capture: $(VENV)/.root pyproject.toml constraints.txt
	@echo 'Installing lorascope and what it needs (once; with torch it takes a few minutes) ...'
	$(PIP) -c constraints.txt -e '.[capture]'
	@touch $@

$(VENV)/.test: $(VENV)/.capture
	@echo 'Installing what the tests need ...'
	$(PIP) -c constraints.txt --group test
	@touch $@

# A name on the PATH may be a shim without a Python behind it, so every candidate has to answer.
$(VENV)/.root: $(STALE)
	@set -e; \
	pyenv="$${PYENV_ROOT:-$$HOME/.pyenv}/versions"; \
	for python in python3.13 python3.12 "$$pyenv"/3.13.*/bin/python "$$pyenv"/3.12.*/bin/python python3; do \
	    if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 12))' >/dev/null 2>&1; then \
	        echo "Making $(VENV) with $$("$$python" -c 'import sys; print(sys.executable)') ..."; \
	        rm -rf $(VENV); \
	        "$$python" -m venv $(VENV) || { \
	            echo 'This Python cannot make environments: install its venv module (on Debian: python3-venv) and try again.' >&2; \
	            rm -rf $(VENV); exit 1; }; \
	        $(PIP) 'pip>=25.1'; \
	        echo '$(CURDIR)' > $@; \
	        exit 0; \
	    fi; \
	done; \
	echo "lorascope needs Python 3.12 or newer. Looked for: python3.13, python3.12, $$pyenv/3.13.* and 3.12.*, python3." >&2; \
	echo 'Install one (python.org, your package manager, or: pyenv install 3.13) and run the same command again.' >&2; \
	exit 1
