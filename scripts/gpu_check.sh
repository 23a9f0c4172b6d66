#!/usr/bin/env bash
# Builds the kernels for this machine's GPU, tests and measures them: finds a GPU and a python3 with torch and pytest,
# then runs gpu_check.py, which lists the steps. Called by `make gpu-check`; arguments go to gpu_check.py.
#   exit 0: all steps passed    exit 1: a step failed    exit 69: no GPU, nothing was checked
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
if ! gpus=$(nvidia-smi -L 2>/dev/null); then
  echo "gpu-check: no NVIDIA GPU here (nvidia-smi does not answer): nothing was checked" >&2
  exit 69
fi
printf '%s\n' "$gpus"

has_needs() { "$1" -c 'import pytest, torch, sys; sys.exit(not torch.cuda.is_available())' 2>/dev/null; }
for python in "${PYTHON:-}" .venv/bin/python python3; do
  if [[ -n $python ]] && has_needs "$python"; then break; fi
  python=
done
if [[ -z $python ]]; then
  make setup
  python=.venv/bin/python
fi
exec "$python" scripts/gpu_check.py "$@"
