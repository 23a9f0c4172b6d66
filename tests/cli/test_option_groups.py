"""Option groups: the options of dataclasses on the command line, the dataclasses in the command."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

import pytest
import typer
from typer.testing import CliRunner

from vllm_quant_plugin.option_groups import option_groups


@dataclass(frozen=True)
class Workload:
    help_panel: ClassVar[str] = "Workload of the server"

    concurrency: Annotated[int, typer.Option(min=1, help="Requests at once.")] = 1
    objective: Annotated[Literal["latency", "cost"], typer.Option(help="What to prefer.")] = "cost"
    gpu: Annotated[list[str], typer.Option(help="Devices.")] = field(default_factory=list)
    internal: float = 1.5


@dataclass(frozen=True)
class Required:
    limit: Annotated[float, typer.Option("--max", "-x")]


received: list[tuple[str, Workload, Required, bool]] = []


@option_groups
def command(
    model: Annotated[str, typer.Argument()],
    workload: Workload,
    required: Required,
    dry_run: Annotated[bool, typer.Option("--dry-run")] = False,
) -> None:
    """The command."""
    received.append((model, workload, required, dry_run))


def run(*words: str) -> tuple[int, str]:
    received.clear()
    app = typer.Typer(add_completion=False)
    app.command()(command)
    result = CliRunner().invoke(app, words, terminal_width=120)
    return result.exit_code, result.output


def test_defaults_are_those_of_the_dataclass() -> None:
    assert run("m", "-x", "2")[0] == 0
    assert received == [("m", Workload(), Required(2.0), False)]


def test_values_arrive_in_their_group() -> None:
    words = ["--concurrency", "3", "--objective", "latency", "--gpu", "a", "--gpu", "b", "--max", "4", "--dry-run"]
    assert run("m", *words)[0] == 0
    assert received == [("m", Workload(3, "latency", ["a", "b"]), Required(4.0), True)]


@pytest.mark.parametrize("words", [["--concurrency", "0"], ["--objective", "beauty"], ["--internal", "2"], []])
def test_bad_values_are_usage_errors(words: list[str]) -> None:
    options = ["-x", "2"] if words else []
    assert run("m", *words, *options)[0] == 2
    assert received == []


def test_the_help_names_every_option_and_the_panel() -> None:
    code, text = run("--help")
    assert code == 0
    for expected in ("--concurrency", "Requests at once.", "--max", "--dry-run", "Workload of the server"):
        assert expected in text
    assert "internal" not in text


def test_options_of_the_same_name_are_refused() -> None:
    def twice(first: Workload, second: Workload) -> None:
        raise AssertionError

    with pytest.raises(TypeError, match="concurrency"):
        option_groups(twice)
