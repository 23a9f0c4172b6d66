#!/usr/bin/env bash
# Builds the kernels for this machine's GPU, runs tests/gpu, then the benchmarks benchmarks/gpu_*.py. They need
# torch and pytest only, so a bare machine with those two will do; vLLM is served where it is installed.
# Called by `make gpu-check`.
#   exit 0: the tests passed    exit 1: they failed    exit 69: no GPU, nothing was checked
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

# A build of its own, for the GPU that is here: make's may have been configured without CUDA.
build=build/gpu-check
architecture=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -1 | tr -d .)
# Hopper's own instructions need the "a" that CMake's "native" leaves out.
[[ $architecture == 90 ]] && architecture=90a
cmake -S kernels -B "$build" -DVQP_CUDA=ON -DVQP_CUDA_ARCHITECTURES="$architecture-real" >/dev/null
cmake --build "$build" --parallel

# The tests' own pytest.ini keeps the project's plugins and conftest out. The folder
# kernels/ is on the path only where the package is not installed.
"$python" -c 'import vllm_quant_kernels' 2>/dev/null || export PYTHONPATH="$root/kernels${PYTHONPATH:+:$PYTHONPATH}"
"$python" -m pytest -c tests/gpu/pytest.ini tests/gpu "$@"
# Speed only of what is right. Results land in benchmarks/results/<gpu>-<date>.json and ...-w8a8.json.
"$python" benchmarks/gpu_linear.py
"$python" benchmarks/gpu_w8a8.py
# The whole plugin in vLLM, where there is one; VQP_SERVE_MODEL names a larger 16-bit model. 69: nothing was served.
if ! "$python" -c 'import vllm' 2>/dev/null; then
  echo "gpu-check: vLLM is not installed: no server was started"
  exit 0
fi
"$python" benchmarks/gpu_serve.py "${VQP_SERVE_MODEL:-vllm_quant_plugin/data/stdlib-llama}"
