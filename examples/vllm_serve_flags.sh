#!/usr/bin/env bash
# Bare vLLM with this plugin installed: only a flag changes.
#
#   examples/vllm_serve_flags.sh MODEL [vllm serve flags]
#
# MODEL is a GPTQ checkpoint of any width, group size and symmetry; --quantization accepts vqp_awq, vqp_gptq,
# vqp_fp8 or vqp_int8 (QUANTIZATION), and a checkpoint that vLLM itself rejects needs no flag.
set -euo pipefail

if (($# < 1)); then
    sed -n '2,8s/^# \{0,1\}//p' "$0"
    exit 2
fi
model=$1
shift

exec vllm serve "$model" --quantization "${QUANTIZATION:-vqp_gptq}" --host 127.0.0.1 "$@"
