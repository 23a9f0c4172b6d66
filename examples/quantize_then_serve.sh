#!/usr/bin/env bash
# Quantize a model folder, then serve it and send it a prompt.
#
#   examples/quantize_then_serve.sh MODEL OUTPUT [METHOD] [vllm-quant quantize flags]
#
# METHOD is awq (default), gptq, fp8 or int8. PORT (8000) and SERVE_FLAGS are read from the environment.
set -euo pipefail

if (($# < 2)); then
    sed -n '2,7s/^# \{0,1\}//p' "$0"
    exit 2
fi
model=$1 output=$2 method=${3:-awq}
shift $(($# > 2 ? 3 : 2))
port=${PORT:-8000}

vllm-quant quantize "$model" -m "$method" -o "$output" "$@"

# SERVE_FLAGS is split on purpose: it holds several arguments.
# shellcheck disable=SC2086
vllm-quant serve "$output" --port "$port" --admin-port "$((port + 1))" --served-model-name quantized ${SERVE_FLAGS:-} &
server=$!
# The server is drained and stopped however this script ends.
trap 'kill -TERM "$server" 2>/dev/null; wait "$server"' EXIT

until curl --silent --fail "http://127.0.0.1:$((port + 1))/readyz" >/dev/null; do
    kill -0 "$server" || exit 1
    sleep 1
done

curl --silent --fail "http://127.0.0.1:$port/v1/completions" \
    --header 'Content-Type: application/json' \
    --data '{"model": "quantized", "prompt": "def main(", "max_tokens": 32}'
echo
curl --silent --fail "http://127.0.0.1:$port/metrics" | grep '^vqp_'
