#!/usr/bin/env bash
# Sets up .venv and runs every check: format, lint, types, tests. Arguments go to pytest.
#
#   ./scripts/test.sh
#   ./scripts/test.sh tests/test_losses.py -k chunk
set -euo pipefail

. "$(dirname "$0")/environment.sh" requirements-dev.txt

# The real multilingual vocabulary, for whoever has no ../shared. Its dependencies (a second, newer
# torch among them) are not wanted: only one data file of it is read.
python -c 'import importlib.metadata as m; m.version("openai-whisper")' 2>/dev/null ||
  pip install --quiet --disable-pip-version-check --no-deps openai-whisper==20250625

if [ $# -eq 0 ]; then
  ruff format --check .
  ruff check .
  mypy
  exec pytest -n 2 --dist worksteal
fi
exec pytest "$@"
