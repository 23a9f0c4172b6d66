"""Every flag of the installed ``vllm serve`` reaches the child's argument list as it was typed."""

from __future__ import annotations

import argparse
import importlib
import json

import pytest
from typer.testing import CliRunner

from vllm_quant_plugin.cli import build_app
from vllm_quant_serve.flags import parse_args


def vllm_parser() -> argparse.ArgumentParser:
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    for name in ("vllm.entrypoints.launchers.cli_args", "vllm.entrypoints.common.cli_args"):
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError:
            continue
        return module.make_arg_parser(FlexibleArgumentParser())
    raise AssertionError("vLLM's serve parser has moved")


def words_of(action: argparse.Action, name: str, joined: bool) -> list[str]:
    if action.nargs == 0:
        return [name]
    value = str(next(iter(action.choices))) if action.choices else '{"a": [1, 2]}'
    if action.type is int:
        value = "-1"
    return [f"{name}={value}"] if joined else [name, value]


@pytest.fixture(scope="module")
def actions() -> list[tuple[argparse.Action, str]]:
    skipped = {"--help", "-h", "--model", "--config", "--api-key", "--uds"}
    return [(a, n) for a in vllm_parser()._actions for n in a.option_strings if n not in skipped]


def child_argv(words: list[str]) -> list[str]:
    result = CliRunner().invoke(
        build_app(["serve"]), ["serve", "org/model", "--no-plan", "--dry-run", "--json", *words]
    )
    assert result.exit_code == 0, (words, result.output, result.exception)
    return json.loads(result.stdout)["argv"]


@pytest.mark.parametrize("joined", [False, True])
def test_every_flag_round_trips(actions: list[tuple[argparse.Action, str]], joined: bool) -> None:
    assert len(actions) > 200
    for action, name in actions:
        # These two are read by the launcher: the port must be one, a host and a socket exclude each other.
        words = [name, "8123"] if name == "--port" else words_of(action, name, joined)
        argv = child_argv(words)
        assert argv[:3] == ["vllm", "serve", "org/model"]
        assert argv[-len(words) :] == words, name


def test_all_flags_at_once_keep_their_order(actions: list[tuple[argparse.Action, str]]) -> None:
    words = [w for a, n in actions for w in ([n, "8123"] if n == "--port" else words_of(a, n, False))]
    assert child_argv(words)[-len(words) :] == words


def test_none_of_our_flags_is_one_of_vllms(actions: list[tuple[argparse.Action, str]]) -> None:
    from typer.main import get_command

    ours = {
        name
        for parameter in get_command(build_app(["serve"])).commands["serve"].params
        for name in getattr(parameter, "opts", [])
        if name.startswith("-")
    }
    assert ours & {name for _, name in actions} == set()


def test_prefixes_that_vllm_accepts_are_seen(actions: list[tuple[argparse.Action, str]]) -> None:
    """A flag argparse would complete to ``--max-model-len`` counts as set by the user."""
    parser = vllm_parser()
    full = {name for _, name in actions if name.startswith("--")}
    for length in range(6, len("--max-model-len")):
        prefix = "--max-model-len"[:length]
        if [name for name in full if name.startswith(prefix)] == ["--max-model-len"]:
            assert parser.parse_args([prefix, "77"]).max_model_len == 77
            assert parse_args(["m", prefix, "77"]).integer("--max-model-len") == 77
