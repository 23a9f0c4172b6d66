#!/usr/bin/env bash
# Installs this package into .venv, editable, with the build tools that the lock put there.
# Usage: install.sh cpu|cuda
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=scripts/uv.sh
source "$root/scripts/uv.sh"
find_uv
cd "$root"
# build/editable is kept between builds, unless it was configured in another place (a copied tree).
if [[ -f build/editable/CMakeCache.txt ]] && ! grep -qx "CMAKE_HOME_DIRECTORY:INTERNAL=$root/kernels" build/editable/CMakeCache.txt; then
  rm -rf build/editable
fi
# CUDA kernels take minutes to compile: only a GPU set-up builds them. `make cuda` does so anywhere.
cuda=OFF
[[ ${1:-cpu} == cuda ]] && cuda=AUTO
"$uv" pip install --quiet -C cmake.define.VQP_CUDA="$cuda" --python "$root/.venv/bin/python" --no-deps --no-build-isolation --reinstall-package vllm-quant-plugin -e "$root"
