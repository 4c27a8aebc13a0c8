#!/usr/bin/env bash
# Sets up .venv and runs every check: format, lint, types, documents, tests. Arguments go to pytest.
#
#   ./scripts/test.sh
#   ./scripts/test.sh tests/training/test_losses.py -k chunk
set -euo pipefail

. "$(dirname "$0")/environment.sh" requirements-dev.txt

# The real multilingual vocabulary, for whoever has no ../shared, and what moves timestamps. Their
# dependencies (a second, newer torch and a torchaudio for it) are not wanted: of the one only a data
# file is read, of the other what needs no torchaudio.
python -c 'import importlib.metadata as m; m.version("openai-whisper"), m.version("stable-ts")' \
  2>/dev/null ||
  pip install --quiet --disable-pip-version-check --no-deps openai-whisper==20250625 \
    stable-ts==2.19.1

if [ $# -eq 0 ]; then
  ruff format --check .
  ruff check .
  mypy
  # Its notice on MkDocs 2 is not about these documents.
  NO_MKDOCS_2_WARNING=1 mkdocs build --strict --quiet # into site/
  exec pytest -n 2 --dist worksteal
fi
exec pytest "$@"
