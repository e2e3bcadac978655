# make reproduce | make test | make book | make notebooks | make lock | make clean
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
JOBS ?= $(shell $(PYTHON) -c "import os; print(os.cpu_count() or 1)")
NOTEBOOKS ?=
export TOKENIZERS_PARALLELISM = false
export PYTHONWARNINGS = ignore::DeprecationWarning

.PHONY: reproduce test setup book pages notebooks lint lock clean
.DEFAULT_GOAL := reproduce

reproduce: setup
	@echo "[1/2] tables at the reduced scale"
	@OMP_NUM_THREADS=1 $(BIN)/companion reproduce all --scale reduced --jobs $(JOBS); status=$$?; \
		echo "[2/2] the book"; $(MAKE) --no-print-directory book && exit $$status
	@echo "Done. Open _build/html/index.html; 'companion show PAPER TABLE' prints a table, 'companion list' names them."

test: setup
	@echo "[1/3] style"
	@$(BIN)/ruff check . && $(BIN)/ruff format --check -q . && $(BIN)/python workflow/pages.py --check
	@echo "[2/3] the book, warnings as errors"
	@$(MAKE) --no-print-directory book
	@echo "[3/3] unit tests, notebooks, links of the book"
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests notebooks --nbval-lax --nbval-current-env \
		--nbval-cell-timeout=600 -n $(JOBS) --dist loadfile

setup: $(VENV)/.ready

$(VENV)/.ready: requirements.lock pyproject.toml
	@$(PYTHON) -c "import sys; sys.exit(0 if sys.version_info >= (3, 11) else 'Python 3.11 or newer is needed; found ' + sys.version.split()[0] + '. Name another with make PYTHON=...')"
	@echo "Setting up $(VENV): about 6 GB of packages, a few minutes, once"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -q --disable-pip-version-check $$(grep -oE '^uv==[^ ;]+' requirements.lock)
	@$(BIN)/uv pip install --no-config --compile-bytecode --python $(BIN)/python --require-hashes -r requirements.lock \
		|| $(BIN)/python -m pip install --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

# results pages run at every build; old doctrees would keep old numbers
book: setup
	@rm -rf _build/.doctrees _build/html && mkdir -p _build
	@$(BIN)/jupyter-book build . -n -W --keep-going -q > _build/book.log 2>&1; status=$$?; \
		grep -v "TCP without encryption" _build/book.log | tail -n 40; exit $$status

pages: setup
	@$(BIN)/python workflow/pages.py

notebooks: setup
	@OMP_NUM_THREADS=1 $(BIN)/python workflow/notebooks.py $(NOTEBOOKS)

lint: setup
	@$(BIN)/ruff check --fix . && $(BIN)/ruff format .

# --no-emit-index-url: no address of an index in the file; uv from the lock itself
lock: setup
	@$(BIN)/uv pip compile --universal --python-version 3.11 --all-extras --generate-hashes --no-emit-index-url \
		--no-header --no-annotate -q pyproject.toml -o requirements.lock

clean:
	rm -rf _build runs
