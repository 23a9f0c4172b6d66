# Sourced by setup.sh, install.sh, lock.sh and build_wheel.sh: finds or installs uv, passes pip's settings to it, and
# makes sure that the locked CPU build of torch can be found.
# Sets $uv; the caller has set $root.

say() { printf '%s\n' "[set-up] $*"; }
die() { printf '%s\n' "error: $*" >&2; exit 1; }

find_uv() {
  local bootstrap="$root/.uv-bootstrap" candidate python
  for candidate in uv "$bootstrap/bin/uv"; do
    # A shim of a version manager may exist without a uv behind it: ask it to run.
    if "$candidate" --version >/dev/null 2>&1; then uv="$candidate"; return; fi
  done
  for python in python3 python3.11 python3.12 python; do
    if "$python" -m pip --version >/dev/null 2>&1; then
      say "uv is missing: installing it with pip into .uv-bootstrap (the system's Python is not touched)"
      PIP_ROOT_USER_ACTION=ignore "$python" -m pip install --quiet --disable-pip-version-check --target "$bootstrap" uv \
        || die "pip could not install uv; install it another way and run make again"
      uv="$bootstrap/bin/uv"
      return
    fi
  done
  die "neither uv nor a Python with pip was found (Debian: apt-get install python3-pip)"
}

# Passes pip's environment variables on to uv. pip separates by spaces, uv's find-links by commas.
use_pip_settings() {
  if [[ -n ${PIP_FIND_LINKS:-} && -z ${UV_FIND_LINKS:-} ]]; then
    export UV_FIND_LINKS="${PIP_FIND_LINKS// /,}"
    say "wheels are also taken from PIP_FIND_LINKS"
  fi
  if [[ -n ${PIP_INDEX_URL:-} && -z ${UV_DEFAULT_INDEX:-}${UV_INDEX_URL:-} ]]; then
    export UV_DEFAULT_INDEX="$PIP_INDEX_URL"
  fi
  if [[ -n ${PIP_EXTRA_INDEX_URL:-} && -z ${UV_INDEX:-}${UV_EXTRA_INDEX_URL:-} ]]; then
    export UV_INDEX="$PIP_EXTRA_INDEX_URL"
  fi
}

# The "+cpu" builds of torch are on PyTorch's own wheel index and on mirrors. Only torch's page of that index is added,
# as a flat list of links, so that no other package can come from there.
#   $1: the interpreter for which a build is wanted
ensure_torch_cpu() {
  local page="${VQP_TORCH_CPU_LINKS:-https://download.pytorch.org/whl/cpu/torch/}" pin
  pin=$(grep '^torch==' "$root/requirements/cpu.in")
  local probe=("$uv" pip install --quiet --dry-run --no-deps --reinstall --python "$1" --target "$root/build/probe" "$pin")
  if "${probe[@]}" >/dev/null 2>&1; then return; fi
  export UV_FIND_LINKS="${UV_FIND_LINKS:+$UV_FIND_LINKS,}$page"
  say "the default index has no $pin: using PyTorch's own CPU wheel index for it ($page)"
  "${probe[@]}" || die "$pin was not found: put its wheel into a folder and set PIP_FIND_LINKS to it"
}
