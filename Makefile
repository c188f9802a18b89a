# The same commands for a person and for CI. `make repro` and `make test` install what they need into .venv.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: repro plots test lint fresh

repro: $(BIN)/.installed .git  ## run what the questions need that is not there yet
	dvc repro

plots: $(BIN)/.installed .git  ## one page with every diagram: dvc_plots/index.html
	dvc plots show

test: $(BIN)/.installed-dev .git
	python -m pytest

lint: $(BIN)/.installed-dev
	ruff check
	ruff format --check
	mypy

fresh: $(BIN)/.installed  ## do the committed results belong to the committed code and parameters?
	dvc repro --dry --allow-missing | tee /dev/stderr | grep -q "up to date"

$(BIN)/.installed: requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --requirement requirements.txt
	touch $@

$(BIN)/.installed-dev: requirements-dev.txt $(BIN)/.installed
	$(BIN)/python -m pip install --quiet --requirement requirements-dev.txt
	touch $@

# DVC and DVCLive work in a git repository with a commit; a zip download has none.
.git:
	git rev-parse --git-dir > /dev/null 2>&1 || { git init --quiet && git add --all && git -c user.name=download \
		-c user.email=download@localhost commit --quiet --message "As downloaded"; }
