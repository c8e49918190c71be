VENV ?= .venv
PYTHON ?= python3
RUN = $(VENV)/bin/
export PYTHON

.PHONY: help setup ffcv-wheel demo test test-all lint docs bench bench-live bench-students bench-gpu bench-scale paper paper-full

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /:/' | awk -F: '{printf "make %-14s %s\n", $$1, $$2}'
	@echo "another environment: make VENV=dir …    another interpreter: make setup PYTHON=python3.12"

setup: ## install everything into .venv (Debian and Ubuntu; as root or with sudo); again takes seconds
	@scripts/setup.sh $(VENV)

ffcv-wheel: ## a wheel of ffcv in dist/ that installs without headers or a compiler (one minute; PYTHON=python3.12)
	@scripts/ffcv_wheel.sh dist

demo: setup ## a tenth of Fashion-MNIST, a student with and without the teacher, and their table
	@$(RUN)python -m benchmarks.demo

test: setup lint ## the tests (ten minutes on two idle cores), a file a core; then the laws again, with every core at once
	@OMP_NUM_THREADS=1 $(RUN)python -m pytest -m "not long" --numprocesses auto --dist loadfile
	@$(RUN)python -m pytest -m "not long" tests/test_laws.py tests/test_resume.py

test-all: test ## those that take minutes each too (an hour; with npm, on real pictures)
	@$(RUN)python -m pytest -m long -rs

lint: setup ## ruff and mypy
	@$(RUN)ruff check .
	@$(RUN)ruff format --check .
	@$(RUN)mypy

docs: setup ## the documentation as a site in site/, its command reference made anew; open site/index.html
	@$(RUN)python -m scripts.command_reference --write
	@NO_MKDOCS_2_WARNING=1 $(RUN)python -m mkdocs build --strict --quiet

bench: setup ## start-up, each stage and each method of selection beside its bound; results go to benchmarks/results
	@$(RUN)python -m benchmarks.startup --save
	@$(RUN)python -m benchmarks.throughput --save
	@$(RUN)python -m benchmarks.selection --save

bench-scale: setup ## selection and scores on 1,281,167 × 2,048 features within 8 GiB (hours; 5.3 GB of disk)
	@$(RUN)python -m benchmarks.selection_scale --save

bench-live: setup ## kdtool's loop beside a live teacher's, in turn (4 minutes)
	@$(RUN)python -m benchmarks.live --save

bench-students: setup ## five students from packing on, beside live-teacher runs (an hour; a stopped one goes on)
	@$(RUN)python -m benchmarks.students

bench-gpu: setup ## the same on a GPU (under 8 minutes; DATA=folder of Fashion-MNIST's files, where not downloaded)
	@$(RUN)python -m benchmarks.throughput --gpu $(if $(DATA),--data-dir $(DATA))

paper: setup ## the paper's claims on Fashion-MNIST and digits, and how each fell; runs what results/ lacks (6 hours, if all)
	@$(RUN)python -m benchmarks.paper

paper-full: setup ## the same by the paper's own recipe, for a GPU (DATA=folder of CIFAR's and SVHN's files)
	@$(RUN)python -m benchmarks.paper --full $(if $(DATA),--data-dir $(DATA))
