# Two commands do all the set-up: `make demo` runs the main job, `make test` the checks. Both need Python 3.11 only.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := runs/demo
STEPS ?= 2500

.PHONY: demo test test-slow lint docs wheel-check clean

demo: $(VENV)/installed
	$(BIN)/soft-mpcritic train InvertedDoublePendulum-v5 --total-steps $(STEPS) --run-dir $(DEMO) --resume
	$(BIN)/soft-mpcritic evaluate $(DEMO) --episodes 10 --video $(DEMO)/video.mp4
	@echo "learning curve: $(DEMO)/learning_curve.png"
	@echo "video:          $(DEMO)/video.mp4"

test: lint
	$(BIN)/pytest -n 2 --dist worksteal -m "not slow"

test-slow: $(VENV)/dev-installed
	$(BIN)/pytest -m slow

lint: $(VENV)/dev-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

docs: $(VENV)/dev-installed
	$(BIN)/mkdocs build --strict --quiet
	@echo "documentation: site/index.html"

# Is the wheel whole? Built, and installed where nothing else is.
wheel-check: $(VENV)/dev-installed
	rm -rf build/wheel && $(PYTHON) -m venv build/wheel/env
	$(BIN)/pip wheel --quiet --no-deps --wheel-dir build/wheel .
	build/wheel/env/bin/pip install --quiet --constraint constraints.txt build/wheel/*.whl
	cd build/wheel && env/bin/soft-mpcritic --help > /dev/null
	cd build/wheel && env/bin/python -c 'import soft_mpcritic as s, pathlib; [getattr(s, n) for n in s.__all__]; assert (pathlib.Path(s.__file__).parent / "py.typed").exists()'

$(VENV)/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/dev-installed: $(VENV)/installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) runs build site
