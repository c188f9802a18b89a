# The same commands for a person and for CI. `make repro` and `make test` install what they need into .venv.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: help repro plots test lint audit fresh docs pr-report demo demo-export test-demo bench shuffled-labels planted-marker \
	seeds intervals sites architecture foreign fuzz label log monitor plan accept rehearse monitoring rehearsals \
	local-acceptance test-faults scaling validate-taxonomy predict evaluate findings answers verify promises fresh-phantoms \
	public-predictions referral-rates first-sight readers reader-studies repair repairs later-failures

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-20s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

repro: $(BIN)/.installed .git  ## run what the questions need that is not there yet
	@python -m commands.repro

plots: $(BIN)/.installed .git  ## one page with every diagram: dvc_plots/index.html
	dvc plots show

answers: $(BIN)/.installed  ## every question with its answer in a sentence, from the last run
	python -m commands.answers

predict: given-IMAGES given-OUT $(BIN)/.installed  ## score new images: make predict IMAGES=<folder or CSV> OUT=<file>.csv; docs/predict.md
	python -m commands.predict "$(IMAGES)" --out "$(OUT)" $(if $(TIME),--time "$(TIME)")

evaluate: given-PREDICTIONS given-OUT $(BIN)/.installed-evaluate  ## a report on models by their predictions: make evaluate PREDICTIONS="a.csv b.csv" OUT=<folder> OPTIONS="..."
	OMP_NUM_THREADS=1 python -m commands.evaluate $(PREDICTIONS) --out "$(OUT)" $(OPTIONS)

findings: $(BIN)/.installed  ## every class or finding in turn, on one page: findings/findings.html; docs/extending.md
	python -m commands.findings

plan: $(BIN)/.installed  ## how many cases will an acceptance test by protocol.yaml take? docs/acceptance.md
	python -m commands.plan

accept: $(BIN)/.installed  ## may it be switched on here? make accept PREDICTIONS=<labelled CSV>
	@test -n "$(PREDICTIONS)" || { echo "make accept PREDICTIONS=<labelled CSV>" >&2; exit 2; }
	python -m commands.accept "$(PREDICTIONS)"

log: $(BIN)/.installed  ## what somebody else's system decided: make log DECISIONS=<CSV>; `make predict` logs ours
	@test -n "$(DECISIONS)" || { echo "make log DECISIONS=<CSV>" >&2; exit 2; }
	python -m commands.log "$(DECISIONS)"

label: $(BIN)/.installed  ## who is due to be read? make -s label > due.csv; and back: make label ANSWERS=<CSV>; docs/monitoring.md
	python -m commands.label $(if $(ANSWERS),"$(ANSWERS)")

monitor: $(BIN)/.installed .git  ## is it still true? as often as one likes
	touch monitor/labels.csv monitor/reference.csv
	cp monitor/pipeline.yaml monitor/dvc.yaml
	dvc repro monitor/dvc.yaml
	python -m commands.monitor

rehearse: $(BIN)/.installed  ## a year with a shift planted in it, docs/rehearsal.png; make rehearse WEEK=26 CASES=<CSV>
	python -m commands.rehearse $(if $(CASES),--cases "$(CASES)") $(if $(WEEK),--week $(WEEK))

repair: $(BIN)/.installed .git  ## what does mending a kind of failure buy? make repair KIND=spurious|noise|blindness|ambiguity; docs/repairs.md
	@test -n "$(KIND)" || { echo "make repair KIND=spurious|noise|blindness|ambiguity" >&2; exit 2; }
	python -m commands.repair "$(KIND)" $(if $(CASES),--cases "$(CASES)")

verify: $(BIN)/.installed  ## is what lies on disk whole? says what is damaged, and what mends it
	python -m commands.verify

test: $(BIN)/.installed-dev .git  ## every test but those of the viewer in a browser
	OMP_NUM_THREADS=1 python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

lint: $(BIN)/.installed-dev audit  ## style, types, and `make audit`
	ruff check
	ruff format --check
	mypy

audit: $(BIN)/.installed-dev  ## known vulnerabilities of the pins, where the index that serves them tells
	@found=$$(pip-audit --strict --progress-spinner off --disable-pip --require-hashes \
		$(addprefix --requirement ,$(wildcard requirements*.txt)) 2> /dev/null) && echo "pip-audit: no known vulnerability" || \
		if test -n "$$found"; then echo "$$found"; exit 1; else echo "pip-audit: its data cannot be reached, nothing was audited"; fi

fresh: $(BIN)/.installed  ## do the committed results belong to the committed code and parameters?
	dvc repro --dry --allow-missing | tee /dev/stderr | grep -q "up to date"

pr-report: $(BIN)/.installed .git  ## what changes among the figures: make pr-report BASE=origin/main; pr_report/report.md
	@test -n "$(BASE)" || { echo "make pr-report BASE=<branch or commit>" >&2; exit 2; }
	python -m commands.pr_report "$(BASE)"

docs: $(BIN)/.installed-docs  ## the documentation site, its notebook run anew: site/index.html
	PYTHONPATH="$(CURDIR)" OMP_NUM_THREADS=1 mkdocs build --strict

demo: $(BIN)/.installed-demo  ## one patient at a time, in the browser; keep what you read: READINGS=<file>.csv; a reader study: STUDY=<plan>.yaml
	$(if $(STUDY),python -m demo.session "$(STUDY)",python -m streamlit run demo/app.py $(if $(READINGS),-- --readings "$(READINGS)"))

readers: $(BIN)/.installed  ## what did the doctors make of it? make readers READINGS="<CSV or folder> ..."; docs/readers.md
	@test -n "$(READINGS)" || { echo 'make readers READINGS="<CSV or folder> ..."' >&2; exit 2; }
	OMP_NUM_THREADS=1 python -m commands.readers $(READINGS)

demo-export: $(BIN)/.installed  ## the same pages without a server: demo_export/index.html
	python -m demo.export

test-demo: $(BIN)/.installed-test-demo  ## the viewer in a real browser; `make test` tests what it says without one
	command -v chromium > /dev/null || playwright install chromium
	python -m pytest demo

bench: $(BIN)/.installed-bench  ## ours beside its peers: docs/speed.md; fails where a bound is missed
	python -m benchmarks

fuzz: $(BIN)/.installed-dev  ## what becomes of thousands of bad inputs? docs/fuzz.csv; some minutes
	OMP_NUM_THREADS=1 python -m studies.fuzz

test-faults: $(BIN)/.installed  ## kills, a full disk, damaged files: docs/faults.csv; half an hour
	OMP_NUM_THREADS=1 python -m studies.faults

scaling: $(BIN)/.installed  ## time and memory at 2,700 to 100,000 images: docs/scaling.md; some hours, wants an idle machine
	python -m studies.scaling

architecture: $(BIN)/.installed  ## the picture of docs/architecture.md, drawn from the imports
	python -m studies.architecture

first-sight: $(BIN)/.installed  ## the wide picture of README, from the last run and docs/*.png
	python -m studies.first_sight

shuffled-labels: $(BIN)/.installed  ## do maps change when there was nothing to learn? docs/shuffled_labels.csv; needs `make repro`
	python -m studies.shuffled_labels

planted-marker: $(BIN)/.installed  ## do the border's instruments catch a network that reads a marker? docs/planted_marker.csv
	python -m studies.planted_marker

seeds: $(BIN)/.installed .git  ## other training seeds: docs/seeds.md; trains each member once a seed, and goes on after a kill
	python -m studies.seeds

repairs: $(BIN)/.installed .git  ## do repairs keep what failures promises? five phantoms, about an hour: docs/repairs.md
	python -m studies.repairs

validate-taxonomy: $(BIN)/.installed .git  ## is the failure taxonomy right? docs/taxonomy.md; twelve phantoms, a quarter of an hour and more each, goes on after a kill
	python -m studies.taxonomy

intervals: $(BIN)/.installed  ## how often do our intervals cover the truth? docs/intervals.md
	OMP_NUM_THREADS=1 python -m studies.intervals

sites: $(BIN)/.installed  ## does `site` name planted shifts? docs/sites.md; needs `make repro`, 20 phantoms, goes on after a kill
	OMP_NUM_THREADS=1 python -m studies.sites

promises: $(BIN)/.installed  ## do certificates and the answers about a site keep their levels? docs/promises.csv
	OMP_NUM_THREADS=1 python -m studies.promises

later-failures: $(BIN)/.installed .git  ## does an unstable map foretell a later failure? docs/stability.md; needs `make repro`, trains each member once more
	OMP_NUM_THREADS=1 python -m studies.later_failures

fresh-phantoms: $(BIN)/.installed  ## is the verdict true of the population? docs/fresh_phantoms.csv; needs `make repro`
	python -m studies.fresh_phantoms

referral-rates: $(BIN)/.installed  ## what do referrals of 18 and 35 % save, as shipped and calibrated at the site? needs `make repro`
	python -m studies.referral_rates

public-predictions: $(BIN)/.installed  ## the verdict on others' predictions: make public-predictions FOLDER=<folder>; docs/verdicts.md
	OMP_NUM_THREADS=1 python -m studies.public_predictions "$(FOLDER)"

monitoring: $(BIN)/.installed-dev  ## do alarms and acceptance keep their levels, and how long do they take? docs/monitoring.csv, docs/acceptance.csv
	OMP_NUM_THREADS=1 python -m studies.monitoring

rehearsals: $(BIN)/.installed  ## is a planted shift noticed? docs/rehearsals.csv; needs `make repro`, twenty years twice, goes on after a kill
	python -m studies.rehearsals

local-acceptance: $(BIN)/.installed  ## would it have been accepted at another site? make local-acceptance FOLDER=<images>; docs/local_acceptance.csv
	python -m studies.local_acceptance "$(FOLDER)"

reader-studies: $(BIN)/.installed  ## do the intervals of a reader study cover the truth? docs/readers.csv; some minutes
	OMP_NUM_THREADS=1 python -m studies.readers

foreign: $(BIN)/.installed-dev  ## what becomes of photographs, other organs, spoiled films? docs/foreign.csv; needs `make repro`; FOLDERS="<folder of images> ..."
	python -m studies.foreign $(FOLDERS)

given-%:  # before anything is installed
	@test -n "$($*)" || { echo "$* is not given: make help says what each command takes" >&2; exit 2; }

# A minute's worth, without torch; nothing where all is installed already.
$(BIN)/.installed-evaluate: requirements-evaluate.txt
	test -e $(BIN)/.installed || { $(PYTHON) -m venv .venv && \
		$(BIN)/python -m pip install --quiet --requirement requirements-evaluate.txt; }
	touch $@

$(BIN)/.installed: requirements.txt
	$(PYTHON) -m venv .venv
	@echo "Installing about 5 GB, two minutes or more. After its list of packages pip says nothing until all are unpacked."
	$(BIN)/python -m pip install --requirement requirements.txt
	touch $@

$(BIN)/.installed-dev: requirements-dev.txt $(BIN)/.installed
	$(BIN)/python -m pip install --quiet --requirement requirements-dev.txt
	touch $@

$(BIN)/.installed-docs: requirements-docs.txt $(BIN)/.installed
	$(BIN)/python -m pip install --quiet --requirement requirements-docs.txt
	touch $@

$(BIN)/.installed-demo: requirements-demo.txt $(BIN)/.installed
	$(BIN)/python -m pip install --quiet --requirement requirements-demo.txt
	touch $@

$(BIN)/.installed-test-demo: requirements-test-demo.txt $(BIN)/.installed-demo $(BIN)/.installed-dev
	$(BIN)/python -m pip install --quiet --requirement requirements-test-demo.txt
	touch $@

# The peers ask for more than they import: requirements-bench.in says what.
$(BIN)/.installed-bench: requirements-bench.txt $(BIN)/.installed-dev
	$(BIN)/python -m pip install --quiet --no-deps --requirement requirements-bench.txt
	touch $@

# DVC and DVCLive work in a git repository with a commit; a zip download has none.
.git:
	git rev-parse --git-dir > /dev/null 2>&1 || { git init --quiet && git add --all && git -c user.name=download \
		-c user.email=download@localhost commit --quiet --message "As downloaded"; }
