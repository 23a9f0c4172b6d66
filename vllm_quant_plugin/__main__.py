from vllm_quant_plugin.cli import main

main()
