"""``vllm-quant``: the entry point. Each command's module is imported only when it runs.

Expected failures (``VqpError``) leave as one line on stderr and a documented exit
code; with ``--json`` among the arguments, also as a JSON object on stdout.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Annotated, NoReturn

import typer

from vllm_quant_kernels.env import SettingError
from vllm_quant_plugin import __version__
from vllm_quant_plugin.console import discard_log, keep_log, say
from vllm_quant_plugin.errors import BackendError, EngineDiedError, StartupError, UsageError, VqpError
from vllm_quant_plugin.interruption import (
    Interrupted,
    end_children,
    interrupted_by,
    message,
    set_command,
    signals_raise,
)
from vllm_quant_plugin.option_groups import option_groups

# name -> (module, function, one line of help). The function carries typer annotations.
COMMANDS: dict[str, tuple[str, str, str]] = {
    "quantize": ("vllm_quant_plugin.quantize.command", "quantize", "Quantize a model offline."),
    "reproduce": ("vllm_quant_plugin.quantize.command", "reproduce", "Repeat a quantization and compare every file."),
    "plan": ("vllm_quant_serve.plan.command", "plan", "What fits, at which TP, with how many KV tokens."),
    "serve": ("vllm_quant_serve.command", "serve", "Plan, launch vllm serve, supervise, export metrics."),
    "inspect": ("vllm_quant_plugin.inspect", "inspect", "Format, bits and size per module, and who serves it."),
    "eval": ("vllm_quant_plugin.evaluate.command", "evaluate", "Perplexity and KL divergence through vLLM."),
    "backends": ("vllm_quant_plugin.backends.command", "backends", "Libraries that need an environment of their own."),
    "convert": ("vllm_quant_plugin.convert.command", "convert", "From one format to another, without loss."),
    "bench": ("vllm_quant_plugin.bench.command", "bench", "Kernels side by side with in-tree ones."),
    "verify-kernels": (
        "vllm_quant_plugin.verify_kernels.command",
        "verify_kernels",
        "Prove the CUDA kernels here.",
    ),
    "env": ("vllm_quant_plugin.env_command", "env", "Every environment variable, its value now and what it does."),
    "demo": ("vllm_quant_serve.demo", "demo", "The whole path on the bundled model, CPU only."),
}


def _version(show: bool) -> None:
    if show:
        typer.echo(__version__)
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Quantize a model, know before launch that it fits, and serve it with vLLM."""


def build_app(argv: Sequence[str]) -> typer.Typer:
    """The typer app with the command that ``argv`` asks for imported and the others as names only."""
    app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
    app.callback()(_root)
    selected = next((word for word in argv if not word.startswith("-")), None)
    for name, (module, function_name, help_line) in COMMANDS.items():
        if name == selected:
            function = option_groups(getattr(importlib.import_module(module), function_name))
            settings = getattr(function, "context_settings", None)
            app.command(name, help=function.__doc__ or help_line, context_settings=settings)(function)
        else:
            app.command(name, help=help_line)(lambda: None)
    return app


def report(error: VqpError, *, as_json: bool) -> None:
    """Print an expected failure: what happened and how to fix it, on stderr; with ``as_json`` an object on stdout."""
    # Bad input says all there is to say; what a library or an engine printed is worth reading where that failed.
    log = keep_log() if isinstance(error, BackendError | StartupError | EngineDiedError) else None
    if as_json:
        fields = {"message": error.message, "hint": error.hint, "exit_code": error.exit_code}
        print(json.dumps({"error": fields | ({"log": str(log)} if log else {})}))
    hints = [error.hint, f"what it printed is in {log}" if log else ""]
    print("; ".join(filter(None, [f"error: {error.message}", *hints])), file=sys.stderr)


def _end_interrupted(stop: Interrupted, *, as_json: bool) -> NoReturn:
    """Say what is kept, and end without waiting for threads or children."""
    end_children()
    text, hint = message(stop.number, stop.kept)
    if as_json:
        print(json.dumps({"error": {"message": text, "hint": hint, "exit_code": stop.exit_code}}), flush=True)
    say(f"{text}; {hint}")
    discard_log()
    sys.stdout.flush()
    # Not by way of the interpreter's end: libraries would say there what the interruption has cost them.
    os._exit(stop.exit_code)


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Entry point of the ``vllm-quant`` command."""
    words = list(sys.argv[1:] if argv is None else argv)
    as_json = "--json" in words
    set_command(words)
    try:
        with nullcontext() if words[:1] == ["serve"] else signals_raise():
            try:
                build_app(words)(args=words, prog_name="vllm-quant")
            except BaseException as error:
                stop = interrupted_by(error)
                if stop is None:
                    raise
                _end_interrupted(stop, as_json=as_json)
    except VqpError as error:
        report(error, as_json=as_json)
        sys.exit(error.exit_code)
    except SettingError as error:
        report(UsageError(str(error), f"unset {error.name}"), as_json=as_json)
        sys.exit(UsageError.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception:
        log = keep_log()
        if log:
            say(f"what libraries printed is in {log}")
        raise
    sys.exit(0)
