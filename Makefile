# make quickstart   a small gpt-oss model learns on this machine, then answers
# make install      puts `ft` on the PATH
# make test         everything, against transformers, PEFT, llama.cpp, openai-harmony and ggml
# make lint         formatting and clippy
# make bench        a training step of ft against one of transformers + PEFT, requantizing against copies, numpy, torch and ggml,
#                   and exporting against llama.cpp's converter
# make bench-gpu    on a machine with an NVIDIA GPU: speed and memory of training gpt-oss-20b and 120b against the bars, transformers + PEFT
#                   and the kernels' own measure; STAGES=20b,peer chooses

CARGO ?= cargo
PREFIX ?= $(or $(CARGO_HOME),$(HOME)/.cargo)
TARGET := $(or $(CARGO_TARGET_DIR),target)
FT := $(TARGET)/release/ft
MODEL := models/nano
RUN := runs/quickstart
QUESTION := How do I reverse a string in Python?

.PHONY: build setup quickstart test peers lint bench bench-gpu install

build: setup
	$(CARGO) build --release --locked

setup:
	@python3 scripts/libtorch.py

quickstart: build
	@test -e $(MODEL)/config.json || $(FT) init $(MODEL) --preset nano
	@$(FT) train recipes/quickstart.toml $(if $(wildcard $(RUN)),--resume)
	@$(FT) generate $(RUN)/model --prompt "$(QUESTION)" --max-tokens 400 --temperature 0

peers: setup
	@sh scripts/peers.sh

test: peers
	# Always the whole workspace: another selection of packages has other features, and compiles the dependencies anew.
	$(CARGO) build --release --locked --workspace --bins --examples
	$(CARGO) test --release --locked --workspace --exclude ft-tests --lib --bins --examples
	$(CARGO) test --release --locked --workspace --exclude ft-tests --doc
	# One at a time: most of these run ft and its peers on all cores.
	$(CARGO) test --release --locked --workspace --test '*' -- --test-threads=1

lint: setup
	$(CARGO) fmt --all --check
	$(CARGO) clippy --release --locked --workspace --all-targets -- -D warnings

bench: peers build
	$(CARGO) build --release --locked --package ft-quant --examples
	.venv/bin/python bench/train_step.py $(FT)
	.venv/bin/python bench/quantize.py $(FT) $(TARGET)/release/examples
	.venv/bin/python bench/export.py $(FT)

bench-gpu: peers build
	.venv/bin/python bench/gpu/run.py $(FT) $(if $(STAGES),--stages $(STAGES))

install: build
	@sh scripts/install.sh "$(FT)" "$(PREFIX)"
