# One command, the same for a person and for CI.
#   make demo         install, then adapt a small model to data on this machine and prove that it got better
#   make test         the tests               make test-slow   those that take minutes
#   make test-everywhere  the tests as on other machines: other processors, no compiler, other orders; hours
#   make test-fuzz    what nobody would send on purpose, more of it and other examples each time; EXAMPLES=3000
#   make test-models  every kind of model that transformers has; writes the table of docs/models (about ten minutes)
#   make test-cuda    a GPU beside the CPU: answers, losses, memory; needs one
#   make browser      Chromium for the tests of the pages, which are skipped without one; installs it where it may
#   make test-clients OpenAI's client, LangChain, LiteLLM, LlamaIndex and llama.cpp's server, in their own environment
#   make check        format, lint, types     make format      apply the formatter
#   make docs         docs/cli in both languages, from the words of --help
#   make dist         wheel and source, installed elsewhere and tried there: quickstart, and a test of what they hold
#   make bench        every published number  make bench-sft   training speed beside TRL's
#   make bench-train  every kind of training beside TRL's, and the losses of both on one batch
#   make bench-serve  latency under load      make bench-generate  generation speed beside five peers
#   make bench-generate-growth  larger models, longer prompts, more rows, a busy neighbour
#   make bench-lean   the lean pass beside the plain one
#   make bench-cuda   answers and training on a GPU beside plain transformers
#   make bench-data   rows a second of `danlu data check`, and its memory on 1 GB
#   make bench-recall where-clauses beside DuckDB, Polars, ClickHouse and CRoaring; ROWS=100000000
#   make bench-recall-growth  10^6 to 10^8 rows, and 64 readers beside a writer
#   make bench-behaviour  neighbours of items beside LibRecommender, implicit and similaripy; EVENTS=10000000
#   make bench-words  keywords beside bm25s and tantivy   make bench-passages CMRC=FILE  Chinese questions -> passages
#   make bench-recall-vectors  nearest vectors under filters beside faiss, usearch, hnswlib and zvec; ROWS=1000000
#   make bench-adult ADULT=FILE  real persons: clauses counted beside SQLite, and a profile
#   make bench-pages  first paint and size of the pages
#   make bench-memory memory of a server, round after round
#   make bench-furnace  the recipes furnace and recall-demo, whole, and what each step gained
#   make bench-align  the chains align and align-dpo, and what each stage changed
#   make bench-length memory of training on ever longer texts
#   make bench-plan   memory that is planned beside published peaks; ARGS=--runs: beside runs on this machine
#   make bench-quantize  every method at every width: bytes, perplexity, divergence
#   make bench-calibration  what GPTQ's text does to texts of other kinds   make bench-bits   whether a form that was chosen for a budget keeps it on new text
#   make bench-recipe the recipe that is planned, beside a small grid around it
#   make bench-adapters  answers with LoRA adapters of their own
#   make bench-qlora  4-bit weights beside 16-bit ones   make bench-replay  what a second task makes a model forget
#   make bench-rate   the learning rate that is found by itself, beside a grid   make bench-doctor  what a run heals
#   make bench-formats  whether vLLM, llama.cpp and transformers load what is written, and answer alike
#   make bench-judge DATA=FOLDER  judges against people's ratings, beside the cheap baseline
#   make bench-hostile  10,000 rows that nobody would want to judge
#   make bench-parameters  what a rate, a batch, a warmup, a schedule and a rank do to a run, in pictures
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: demo docs dist test test-slow test-everywhere test-fuzz test-models test-cuda browser test-clients check format bench bench-sft \
	bench-train bench-generate bench-generate-growth bench-lean bench-cuda bench-serve bench-data bench-memory bench-length bench-align \
	bench-rate bench-qlora bench-adapters bench-quantize bench-calibration bench-bits bench-replay bench-doctor bench-parameters bench-plan bench-recipe \
	bench-formats bench-recall bench-recall-growth bench-recall-vectors bench-words bench-adult bench-passages \
	bench-behaviour bench-judge bench-hostile bench-pages bench-furnace clean
.DEFAULT_GOAL := test

# torch first and pinned, so that no later package can pull another build of it.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Danlu needs Python 3.11 or newer; set PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

demo: $(INSTALLED)
	$(BIN)/danlu run quickstart

test: $(INSTALLED)
	$(BIN)/pytest -m "not slow" -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test-slow: $(INSTALLED)
	$(BIN)/pytest -m slow

# `ONLY="avx2 default"` runs those; tests/everywhere.py --list names them.
test-everywhere: $(INSTALLED)
	$(BIN)/python tests/everywhere.py $(ONLY)

# Each fault comes with the example that it shrank to; `SEED=` the one that was printed draws the same examples again.
EXAMPLES ?= 3000
test-fuzz: SEED ?= $(shell date +%s)
test-fuzz: $(INSTALLED)
	FUZZ_EXAMPLES=$(EXAMPLES) $(BIN)/pytest tests/fuzz --hypothesis-profile=long --hypothesis-seed=$(SEED)

# What failed stands in the table too.
test-models: $(INSTALLED)
	$(BIN)/pytest tests/test_models.py -o junit_family=xunit1 --junitxml=.models.xml; failed=$$?; \
	$(BIN)/python benchmarks/models_table.py .models.xml --write && exit $$failed

test-cuda: $(INSTALLED)
	$(BIN)/pytest tests/gpu -m cuda

# Debian's and Ubuntu's packages; a Chrome that is there already will do, and so will DANLU_CHROMIUM=PATH.
browser: $(INSTALLED)
	@found=$$(cd tests && ../$(BIN)/python -c 'from browsing import chromium; print(chromium() or "")'); \
	if [ -n "$$found" ]; then echo "the tests of the pages use $$found"; \
	elif ! command -v apt-get > /dev/null; then echo "no Chromium: install one, or set DANLU_CHROMIUM"; exit 1; \
	elif [ "$$(id -u)" = 0 ]; then apt-get update && apt-get install -y --no-install-recommends chromium; \
	else sudo -n apt-get update && sudo -n apt-get install -y --no-install-recommends chromium; fi

# `WRITE=--write` writes the versions that passed into docs/serving.
test-clients: $(INSTALLED)
	tests/clients/clients.sh
	cd tests/clients && DANLU_PYTHON=$(CURDIR)/$(BIN)/python $(CURDIR)/.peers/clients/bin/python -m pytest -c pytest.ini $(WRITE)

check: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	cd benchmarks && ../$(BIN)/mypy --config-file mypy.ini *.py

docs: $(INSTALLED)
	$(BIN)/python benchmarks/cli_page.py --write

# `DIST=quick` leaves out the run of quickstart from the wheel (minutes); `CHECK_PYTHON=` another interpreter.
dist: $(INSTALLED)
	benchmarks/dist.sh $(DIST)

format: $(INSTALLED)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: bench-sft bench-train bench-align bench-length bench-plan bench-rate bench-qlora bench-adapters bench-quantize bench-bits bench-replay \
	bench-doctor bench-parameters bench-recipe bench-generate bench-generate-growth bench-lean bench-serve bench-data bench-memory \
	bench-recall bench-recall-growth bench-recall-vectors bench-words bench-behaviour bench-pages

bench-sft: $(INSTALLED)
	benchmarks/peers.sh trl
	$(BIN)/python benchmarks/sft.py $(WRITE)

bench-cuda: $(INSTALLED)
	$(BIN)/python benchmarks/gpu.py $(WRITE)

# `ARGS="--stages dpo,reward --steps 3"` measures less; `WRITE=--write` updates the guides to training.
bench-train: $(INSTALLED)
	benchmarks/peers.sh trl
	$(BIN)/python benchmarks/train.py $(ARGS) $(WRITE)

bench-lean: $(INSTALLED)
	$(BIN)/python benchmarks/lean.py $(WRITE)

bench-data: $(INSTALLED)
	$(BIN)/python benchmarks/data.py --gigabyte

ROWS ?= 1000000
bench-recall: $(INSTALLED)
	benchmarks/peers.sh recall
	$(BIN)/python benchmarks/recall.py --plain --rows $(ROWS) $(WRITE)

bench-recall-growth: $(INSTALLED)
	$(BIN)/python benchmarks/recall_growth.py $(WRITE)

# `SIZES="1000000"` and `WRITE=--write` as elsewhere.
SIZES ?= 10000 100000
bench-words: $(INSTALLED)
	benchmarks/peers.sh words
	$(BIN)/python benchmarks/recall_words.py --plain --sizes $(SIZES) $(WRITE)

bench-passages: $(INSTALLED)
	$(BIN)/python benchmarks/recall_passages.py $(CMRC) $(WRITE)

bench-adult: $(INSTALLED)
	$(BIN)/python benchmarks/recall_adult.py $(ADULT) $(WRITE)

bench-recall-vectors: $(INSTALLED)
	benchmarks/peers.sh recall-vectors
	$(BIN)/python benchmarks/recall_vectors.py --rows $(ROWS) $(WRITE)

EVENTS ?= 1000000
bench-behaviour: $(INSTALLED)
	-benchmarks/peers.sh behaviour
	$(BIN)/python benchmarks/recall_behaviour.py --events $(EVENTS) $(ARGS) $(WRITE)

bench-serve: $(INSTALLED)
	$(BIN)/python benchmarks/serve.py --write

bench-align: $(INSTALLED)
	$(BIN)/python benchmarks/align.py $(WRITE)

bench-furnace: $(INSTALLED)
	$(BIN)/python benchmarks/furnace.py $(WRITE)

bench-length: $(INSTALLED)
	$(BIN)/python benchmarks/length.py $(WRITE)

bench-rate: $(INSTALLED)
	$(BIN)/python benchmarks/rate.py $(ARGS) $(WRITE)

bench-adapters: $(INSTALLED)
	$(BIN)/python benchmarks/adapters.py $(ARGS) $(WRITE)

bench-qlora: $(INSTALLED)
	$(BIN)/python benchmarks/qlora.py $(WRITE)

bench-quantize: $(INSTALLED)
	benchmarks/peers.sh xllamacpp llmcompressor auto-round
	$(BIN)/python benchmarks/quantize.py $(ARGS) $(WRITE)

bench-calibration: $(INSTALLED)
	$(BIN)/python benchmarks/calibration.py $(if $(CMRC),--cmrc $(CMRC)) $(WRITE)

bench-bits: $(INSTALLED)
	$(BIN)/python benchmarks/bits.py $(ARGS) $(WRITE)

# It installs the peers itself: one that cannot be installed is a cell that says why.
bench-formats: $(INSTALLED)
	-benchmarks/peers.sh vllm
	-benchmarks/peers.sh xllamacpp
	$(BIN)/python benchmarks/formats.py $(ARGS) $(WRITE)

bench-replay: $(INSTALLED)
	$(BIN)/python benchmarks/replay.py $(WRITE)

bench-doctor: $(INSTALLED)
	$(BIN)/python benchmarks/doctor.py $(WRITE)

# `ARGS="--every 5 --sets ocnli"` takes less; stopped, it goes on where it was.
bench-judge: $(INSTALLED)
	$(BIN)/python benchmarks/judge.py $(DATA) $(ARGS) $(WRITE)

# `ARGS="--rows 1000 --judges smollm2-135m runs/judge/judge/model"`; a folder of a pair head is a judge as well.
bench-hostile: $(INSTALLED)
	$(BIN)/python benchmarks/hostile.py $(ARGS) $(WRITE)

bench-parameters: $(INSTALLED)
	$(BIN)/python benchmarks/parameters.py $(WRITE)

bench-plan: $(INSTALLED)
	$(BIN)/python benchmarks/plan.py $(ARGS) $(WRITE)

bench-recipe: $(INSTALLED)
	$(BIN)/python benchmarks/plan_recipe.py $(WRITE)

bench-pages: browser
	PYTHONPATH=tests $(BIN)/python benchmarks/pages.py $(WRITE)

bench-memory: $(INSTALLED)
	$(BIN)/python benchmarks/memory.py $(WRITE)

# It installs the peers itself: one that cannot be installed is a cell that says why. `WRITE=--write` updates the docs;
# `ISA=avx2` or `ISA=avx512` keeps every side to these instructions.
bench-generate: $(INSTALLED)
	$(BIN)/python benchmarks/generate.py $(if $(ISA),--isa $(ISA)) $(ARGS) $(WRITE)

bench-generate-growth: $(INSTALLED)
	$(BIN)/python benchmarks/generation_growth.py $(ARGS) $(WRITE)

clean:
	rm -rf .venv .peers .everywhere .doctor .rates .parameters .planned .judge runs .mypy_cache .pytest_cache .ruff_cache
