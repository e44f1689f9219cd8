#!/usr/bin/env bash
# Trains CLIPS on the built-in data on this machine and shows what it retrieves. Flags go to clips_jax.main:
#   launch/demo.sh
#   launch/demo.sh --config configs/demo.py:method=clip --workdir runs/clip
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh requirements.txt
if [ $# -eq 0 ]; then
  set -- --config configs/demo.py --workdir runs/demo
fi
exec .venv/bin/python -m clips_jax.main "$@"
