#!/usr/bin/env bash
# Resolves requirements/*.in again into requirements/{cpu,cuda}.txt. Called by `make lock`.
# Pins already in a lock are kept where they still fit; `make lock ARGS=--upgrade` drops them.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=scripts/uv.sh
source "$root/scripts/uv.sh"
find_uv
use_pip_settings
ensure_torch_cpu 3.11

# The command in a lock's header is the one that users type, not uv's own line.
export UV_CUSTOM_COMPILE_COMMAND="make lock"
cd "$root/requirements"
say "resolving requirements/cpu.txt"
"$uv" pip compile --quiet --no-annotate --python-version 3.11 --override overrides.txt -o cpu.txt "$@" cpu.in
say "resolving requirements/cuda.txt"
"$uv" pip compile --quiet --no-annotate --python-version 3.11 --override overrides-cuda.txt -o cuda.txt "$@" cuda.in

# Backends ship their locks inside the package; requirements/backends links to them. A machine with a GPU gets
# torch's default build, which must not be taken from where the CPU build is.
for name in llmcompressor llmcompressor-cuda; do
  say "resolving requirements/backends/$name.txt"
  links=${UV_FIND_LINKS:-}
  [[ $name != *-cuda ]] || links=
  UV_FIND_LINKS=$links "$uv" pip compile --quiet --no-annotate --python-version 3.11 --override overrides.txt \
    -o "../vllm_quant_plugin/backends/$name.txt" "$@" "backends/$name.in"
done
