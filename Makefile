# `make demo` and `make test` set everything up on a machine that has Python >= 3.11 and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Plain python, which for one process is what `accelerate launch` starts, only five seconds sooner.
LAUNCH := $(BIN)/python
# What the demo shows: mnist, or shapes in colour.
DATA := mnist
IMAGES := $(DATA:mnist=mnist5k)
# More views of the drawn images: without them their prior learns them by heart.
VIEWS := $(if $(DATA:mnist=),--crops 5 --crop_padding 2)
# Shapes are drawn best with less noise.
TEMPERATURE := $(if $(DATA:mnist=),0.6,0.9)
OUT := runs/$(DATA:mnist=demo)
# Two workers with one thread each; nothing may ask the hub. tests/conftest.py orders the tests and says which stay together.
TEST := HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup --no-loadscope-reorder
# Kernels as on processors with AVX2 and without vector extensions, in each of the three libraries that choose them.
AVX2 := ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2
SSE := ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_ENABLE_INSTRUCTIONS=SSE4_2
SOURCES := src stage1_autoencoders stage2_prior pipelines evaluation benchmarks docs examples tests

.PHONY: setup demo league test test-fast test-processors faults check format bench docs app clean
.DELETE_ON_ERROR:

setup: $(READY)

# -qq: no warnings, for example about other package indexes; errors are printed.
$(READY): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("latent-prior needs Python 3.11 or newer, not " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	@test -d src/latent_prior/pipelines || $(PYTHON) setup.py
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -qq "pip>=25.1"
	$(BIN)/python -m pip install -qq --editable ".[data,offline-eval]" --group dev
	touch $@

# Every stage of the demo leaves a mark in its own folder, so that a second call does nothing and a stopped one goes on.
demo: $(READY)
	@$(MAKE) --no-print-directory $(OUT)/scores/scores.json
	@echo && $(BIN)/python -c "from pathlib import Path; from latent_prior.evaluation.report.compare import show; show(Path('$(OUT)/scores/scores.json'))" && echo
	@echo "generated images:                $(OUT)/samples (all together: $(OUT)/samples/grid.png)"
	@echo "originals | reconstructions:     $(OUT)/vqvae/samples/"
	@$(if $(DATA:shapes=),echo "the same in colour:              make demo DATA=shapes")

$(OUT)/vqvae/.done:
	$(LAUNCH) stage1_autoencoders/train.py --config stage1_autoencoders/configs/$(DATA)_vqvae.yaml --output_dir $(OUT)/vqvae
	@touch $@

$(OUT)/codes/code_spec.json: $(OUT)/vqvae/.done
	$(LAUNCH) stage1_autoencoders/encode.py --autoencoder $(OUT)/vqvae/model --dataset $(IMAGES) $(VIEWS) --output_dir $(OUT)/codes

$(OUT)/prior/.done: $(OUT)/codes/code_spec.json
	$(LAUNCH) stage2_prior/train.py --config stage2_prior/configs/$(DATA)_vqvae.yaml --codes $(OUT)/codes --autoencoder $(OUT)/vqvae/model --output_dir $(OUT)/prior
	@touch $@

$(OUT)/pipeline/pipeline.json: $(OUT)/prior/.done
	$(BIN)/python pipelines/assemble.py --autoencoder $(OUT)/vqvae/model --prior $(OUT)/prior/model --guidance_scale 1.5 --temperature $(TEMPERATURE) --output_dir $(OUT)/pipeline

$(OUT)/samples/grid.png: $(OUT)/pipeline/pipeline.json
	$(LAUNCH) pipelines/generate.py --pipeline $(OUT)/pipeline --num_images 1000 --output_dir $(OUT)/samples

$(OUT)/random_codes/grid.png: $(OUT)/samples/grid.png
	$(LAUNCH) pipelines/generate.py --pipeline $(OUT)/pipeline --num_images 1000 --random_codes --output_dir $(OUT)/random_codes

$(OUT)/scores/scores.json: $(OUT)/random_codes/grid.png
	$(BIN)/python evaluation/score.py --reference $(IMAGES) --reference_split test --features efficientnet_lite0 --num_images 1000 \
		--pipeline $(OUT)/pipeline --candidates "real_train=$(IMAGES)[train]" samples=$(OUT)/samples random_codes=$(OUT)/random_codes \
		--output_dir $(OUT)/scores > /dev/null

# A page with the demo's pipeline, and its images beside real ones.
app: $(READY)
	@test -f $(OUT)/pipeline/pipeline.json || { echo "there is no $(OUT)/pipeline yet: run make demo$(if $(DATA:mnist=), DATA=$(DATA)) first" >&2; exit 2; }
	$(BIN)/python pipelines/app.py --pipeline $(OUT)/pipeline --images "real=$(IMAGES)[test]"

# Ten processor minutes of training for each of seven contestants with each of three seeds, one on every core, on digits and
# on shapes: hours on two cores. With CIFAR10=FOLDER also twenty minutes each on its images. Goes on where it stopped.
league: $(READY)
	$(BIN)/python benchmarks/league.py --data mnist
	$(BIN)/python benchmarks/league.py --data shapes
	$(if $(CIFAR10),$(BIN)/python benchmarks/league.py --data cifar10 --dataset $(CIFAR10))

test: $(READY)
	$(TEST)

test-fast: $(READY)
	$(TEST) -m "not slow and not gpu"

# Results differ in the last bits between processors; no test may depend on them.
test-processors: $(READY)
	$(TEST) -m "not slow and not gpu"
	$(SSE) $(TEST) -m "not slow and not gpu"
	$(AVX2) $(TEST) -m "not slow and not gpu"

# Hours: every command is killed before every change of a file and repeated; files are damaged at random; changed images, presets, indices and tables are read.
faults: $(READY)
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python tests/faults --crashes 0 --damages 400
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python tests/faults/loops.py --minutes 10

check: $(READY)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy
	$(MAKE) --no-print-directory test-fast

format: $(READY)
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

bench: $(READY)
	$(BIN)/python -m pip install -qq --editable ".[bench]"
	$(BIN)/python benchmarks/throughput.py --output runs/throughput.json

# The documents as a site: build/docs/index.html. A warning is an error.
docs: $(READY)
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs build/docs

clean:
	rm -rf $(OUT)
