#!/usr/bin/env bash
# Lint, format, types and all tests. Arguments go to pytest: launch/test.sh -k masks
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh requirements.txt tests/requirements.txt
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/shellcheck -x launch/*.sh .ci/run
.venv/bin/basedpyright --pythonpath .venv/bin/python
exec .venv/bin/python -m pytest -q -n 2 --dist loadfile --durations=15 "$@"
