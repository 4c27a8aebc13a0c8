#!/usr/bin/env bash
# Sets up .venv and runs every check: format, lint, types, documents, tests. Arguments go to pytest.
#
#   ./scripts/test.sh
#   ./scripts/test.sh tests/training/test_losses.py -k chunk
set -euo pipefail

. "$(dirname "$0")/environment.sh" requirements-dev.txt

# The real multilingual vocabulary, for whoever has no ../shared, and what moves timestamps. Their
# dependencies (a second, newer torch and a torchaudio for it) are not wanted: of the one only a data
# file is read, of the other what needs no torchaudio. And audiomentations, which wants an older soxr
# than the one that everything else was tested with.
python -c 'import importlib.metadata as m
m.version("openai-whisper"), m.version("stable-ts"), m.version("audiomentations")' 2>/dev/null ||
  pip install --quiet --disable-pip-version-check --no-deps openai-whisper==20250625 \
    stable-ts==2.19.1 audiomentations==0.43.1 numpy-minmax==0.6.0 numpy-rms==0.7.0 \
    python-stretch==0.3.1

if [ $# -eq 0 ]; then
  ruff format --check .
  ruff check .
  mypy
  # Its notice on MkDocs 2 is not about these documents.
  NO_MKDOCS_2_WARNING=1 mkdocs build --strict --quiet # into site/
  exec pytest -n 2 --dist worksteal
fi
exec pytest "$@"
