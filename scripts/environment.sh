# shellcheck shell=bash
# Sourced by the other scripts: goes to the repository, makes .venv if need be, and activates it.
#
#   . "$(dirname "$0")/environment.sh" requirements.txt
#
# VENV and PYTHON choose another place and another interpreter. An empty VENV takes the Python that
# is active, as it is.

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit

VENV=${VENV-.venv}
PYTHON=${PYTHON:-python3}

install() {
  local requirements=$1 stamp="$VENV/.installed-$1"
  cmp -s <(cat requirements*.txt) "$stamp" && return
  "$PYTHON" -c 'import sys; sys.exit("Python 3.10 or newer is needed" if sys.version_info < (3, 10) else 0)'
  [ -x "$VENV/bin/python" ] || "$PYTHON" -m venv "$VENV"
  echo "installing $requirements into $VENV (once)"
  "$VENV/bin/pip" install --quiet --disable-pip-version-check -r "$requirements"
  cat requirements*.txt >"$stamp"
}

if [ -n "$VENV" ]; then
  install "$1"
  PATH="$(cd "$VENV" && pwd)/bin:$PATH"
fi

# Scripts in subfolders find the package without its being installed.
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
