"""Run the commands that the pages print, as printed: ``python scripts/readme_commands.py [PAGE ...] [--list]``.

Run it from the repository root after ``make``; port 8000 must be free, since that is what the pages use. Each page is
one bash session in a scratch folder that looks like the repository, so that what the commands write is thrown away. A
server is asked for a completion once it answers, then ended by SIGTERM. ``MODEL`` stands for the bundled model. What
sets up an environment or runs the tests is skipped. Without pages: ``PAGES`` and ``EXAMPLES``.
Exit code 1 when a command fails.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MODEL = "vllm_quant_plugin/data/stdlib-llama"
PAGES = ("README.md", "docs/guide/planner.md", "docs/guide/quantize.md", "docs/guide/troubleshooting.md")
ACTIVATE = "source .venv/bin/activate"
# Every flag that the examples' own usage shows.
EXAMPLES = (
    ACTIVATE,
    f"python examples/quantize_convert_evaluate.py {MODEL} out/api --method awq --samples 16 --to gptq --windows 2",
    f"python examples/quantize_then_serve.py {MODEL} out/served --method int8 --max-model-len 256 --enforce-eager",
    f"SERVE_FLAGS='--max-model-len 256' examples/quantize_then_serve.sh {MODEL} out/shell int8 --no-eval",
    "QUANTIZATION=vqp_int8 examples/vllm_serve_flags.sh out/shell --gpu-memory-utilization 0.5",
)
SKIPPED = re.compile(r"^(git clone|pip |make (test|lint|bench|wheel|cuda|ptx|lock|clean|gpu-check)|docker )")
SERVERS = re.compile(r"^([A-Z_]+=\S+ )*(vllm serve|vllm-quant serve (?!.*--(dry-run|emit))|examples/vllm_serve_flags)")
_PROGRAMS = r"make|source|pip|git|vllm|vllm-quant|python|docker|examples/\S+"
_COMMAND = re.compile(rf"^([A-Z_]+=\S*|([A-Z_]+=\S+ )*({_PROGRAMS})( .*)?)$")
# A line that shows a form, not a command.
_FORM = re.compile(r"\[|\.\.\.|\w\|\w")
_PRELUDE = """
until_answers() {
    "$@" & local server=$! code=0
    until curl --silent --fail http://127.0.0.1:8000/v1/models >/dev/null; do
        kill -0 $server 2>/dev/null || { wait $server; return; }
        sleep 1
    done
    curl --silent --show-error --fail http://127.0.0.1:8000/v1/completions --header 'Content-Type: application/json' \\
        --data '{"prompt": "import os", "max_tokens": 8}' || code=1
    kill -TERM $server
    wait $server || code=$?
    return $code
}
"""


def commands(text: str) -> list[str]:
    """The commands of a page's shell blocks, without comments, and those in its sentences that are about ``OUT``."""
    found, kind = [], None
    for line in text.replace("\\\n", " ").splitlines():
        fence = re.match(r"^\s*```(\w*)", line)
        if fence:
            kind = fence[1] if kind is None else None
            continue
        if kind is None:
            found += [span for span in re.findall(r"`(vllm-quant \w+ OUT[^`]*)`", line) if not _FORM.search(span)]
        command = re.sub(r"\s+# .*$", "", line).strip()
        if kind in ("", "sh") and _COMMAND.match(command) and not _FORM.search(command):
            found.append(command if "$MODEL" in command else re.sub(r"\bMODEL\b(?!=)", MODEL, command))
    return found


def program(lines: list[str]) -> str:
    """A bash program that runs each command and prints its exit code after it."""
    steps = [_PRELUDE]
    for number, line in enumerate(lines):
        steps.append(f"printf '\\n$ %s\\n' {_quoted(line)}; SECONDS=0")
        if SKIPPED.match(line):
            steps.append("echo '(skipped)'")
            continue
        output = re.search(r" -o (\S+)", line)
        if line.startswith("vllm-quant quantize") and output and "--overwrite" not in line and "--dry-run" not in line:
            steps.append(f"rm -rf {output[1]}")
        run = re.sub(r"^(([A-Z_]+=\S+ )*)", r"\1until_answers ", line) if SERVERS.match(line) else line
        steps.append(f"{run}\ncode=$?")
        steps.append(f'echo "@ {number} $code $SECONDS"')
    return "\n".join(steps) + "\n"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def run(name: str, lines: list[str]) -> list[str]:
    """Run the commands; those that failed, with their exit codes."""
    failed = []
    with tempfile.TemporaryDirectory(prefix="readme-") as scratch:
        for entry in ROOT.iterdir():
            if entry.name not in (".git", "out"):
                Path(scratch, entry.name).symlink_to(entry)
        process = subprocess.Popen(["bash"], cwd=scratch, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                   stderr=subprocess.STDOUT, text=True)  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(program(lines))
        process.stdin.close()
        for line in process.stdout:
            done = re.match(r"@ (\d+) (\d+) (\d+)$", line)
            if done is None:
                print(line, end="", flush=True)
                continue
            code, seconds = int(done[2]), int(done[3])
            print(f"({'ok' if code == 0 else f'FAILED: exit code {code}'}, {seconds} s)", flush=True)
            # Documented to be one: the model is worse than the limit.
            if code and not (code == 9 and "--max-kl" in lines[int(done[1])]):
                failed.append(f"{name}: {lines[int(done[1])]}: exit code {code}")
        if process.wait():
            failed.append(f"{name}: the session ended with {process.returncode}")
    return failed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="*", help="Markdown pages, or `examples`")
    parser.add_argument("--list", action="store_true", help="print the commands only")
    options = parser.parse_args()
    failed = []
    for name in options.pages or [*PAGES, "examples"]:
        lines = list(EXAMPLES) if name == "examples" else commands((ROOT / name).read_text("utf-8"))
        if ACTIVATE not in lines:
            lines = [ACTIVATE, *lines]
        if options.list:
            print(f"# {name}", *lines, sep="\n")
        else:
            failed += run(name, lines)
    print(*failed, sep="\n", file=sys.stderr)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
