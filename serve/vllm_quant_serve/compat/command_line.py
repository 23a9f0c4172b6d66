"""vLLM's command line, which ``vllm_quant_serve.server`` runs."""

from __future__ import annotations

from vllm.entrypoints.cli.main import main

__all__ = ["main", "option_names"]


def option_names() -> list[str]:
    """The long names of all flags of ``vllm serve``."""
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = make_arg_parser(FlexibleArgumentParser())
    return [name for action in parser._actions for name in action.option_strings if name.startswith("--")]
