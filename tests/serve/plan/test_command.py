"""``vllm-quant plan`` as a process: what it prints, its exit codes, and that it stays light."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

from vllm_quant_serve.plan.output.schema import compare_schema, plan_schema

BUNDLED = Path(__file__).parents[3] / "vllm_quant_plugin" / "data" / "stdlib-llama"
ROOT = Path(__file__).parents[3]
NO_TORCH = (
    "import sys\n"
    "from vllm_quant_plugin.cli import main\n"
    "try:\n    main(sys.argv[1:])\n"
    "finally:\n    heavy = {'torch', 'vllm', 'transformers', 'numpy'} & set(sys.modules)\n"
    "    print(sorted(heavy), file=sys.stderr)\n"
)


def run(*arguments: str, code: str | None = None) -> subprocess.CompletedProcess[str]:
    paths = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "serve"), os.environ.get("PYTHONPATH", "")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in paths if p), "COLUMNS": "100", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", code] if code else [sys.executable, "-m", "vllm_quant_plugin"]
    return subprocess.run([*command, *arguments], capture_output=True, text=True, env=env, timeout=120, check=False)


@pytest.mark.parametrize("extra", [[], ["--json"]])
def test_plan_never_imports_torch(extra):
    done = run("plan", str(BUNDLED), "--gpu", "h100:4", *extra, code=NO_TORCH)
    assert done.returncode == 0
    assert done.stderr.strip() == "[]"


def test_table_shows_memory_placements_and_the_serve_line():
    done = run("plan", str(BUNDLED), "--gpu", "h100:4")
    assert done.returncode == 0, done.stderr
    for text in ("weights per rank", "KV tokens", "79.10 GiB per device", "TP 3: 4 attention heads", "vllm serve"):
        assert text in done.stdout


def test_json_is_one_object_with_the_flags():
    done = run("plan", str(BUNDLED), "--cpu-memory", "8GiB", "--json")
    data = json.loads(done.stdout)
    assert data["device"] == "CPU"
    assert data["serve_args"][0] == "--kv-cache-memory-bytes"
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([str(BUNDLED), "--gpu-memory", "1MiB"], 3, "does not fit"),
        ([str(BUNDLED), "--gpu", "h100", "-tp", "3"], 3, "needs 3 devices"),
        ([str(BUNDLED), "--gpu", "abacus"], 2, "not in the table"),
        ([str(BUNDLED), "--gpu-memory", "many"], 2, "is not a size"),
        (["no/such/folder", "--gpu", "h100"], 6, "no such folder"),
        (["--gpu", "h100"], 2, "plan needs a model"),
    ],
)
def test_failures_are_one_line_with_a_code(arguments, code, message):
    done = run("plan", *arguments, "--json")
    assert done.returncode == code
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert json.loads(done.stdout)["error"]["exit_code"] == code


def test_the_comparison_has_a_schema_too():
    published = json.loads((ROOT / "docs" / "reference" / "plan-compare.schema.json").read_text())
    assert published == compare_schema()
    done = run("plan", str(BUNDLED), "--gpu", "h100", "--compare", "--json")
    jsonschema.validate(json.loads(done.stdout), published)


def test_compare_shows_every_method_with_its_source():
    done = run("plan", str(BUNDLED), "--gpu", "h100", "--compare", "--json")
    methods = json.loads(done.stdout)["methods"]
    assert [row["method"] for row in methods] == ["BF16", "FP8", "INT8", "AWQ-4", "GPTQ-3"]
    weights = [row["weight_bytes_per_rank"] for row in methods]
    assert weights[0] > weights[1] >= weights[2] > weights[3] > weights[4]
    assert all("arXiv" in row["source"] for row in methods[1:])
    table = run("plan", str(BUNDLED), "--gpu", "h100", "--compare").stdout
    assert "expected loss of FP8, INT8: Kurtic" in table
    assert "Speeds are roofline estimates." in table
    assert "Speeds" not in run("plan", str(BUNDLED), "--cpu-memory", "8GiB", "--compare").stdout  # there are none


def test_explain_adds_up(tmp_path):
    done = run("plan", str(BUNDLED), "--gpu", "h100", "--explain", "--json")
    text = "\n".join(json.loads(done.stdout)["explanation"])
    for word in ("H100", "feed-forward", "attention", "cos/sin", "blocks", "as vLLM counts them"):
        assert word in text
    done = run("plan", str(BUNDLED), "--gpu", "h100", "--quantization", "vqp_fp8", "--explain", "--json")
    text = "\n".join(json.loads(done.stdout)["explanation"])
    assert "Kernels, when it is served on this machine:" in text
    assert "not this project's kernel: not proven: no such GPU is here" in text


def test_the_comparison_has_a_page(tmp_path):
    target = tmp_path / "compare.html"
    done = run("plan", str(BUNDLED), "--gpu", "h100:2", "--compare", "--html", str(target))
    assert done.returncode == 0, done.stderr
    page = target.read_text()
    for text in ("All methods fit.", "2 x H100 SXM 80GB", "GPTQ-3", "arXiv:2306.00978"):
        assert text in page
    assert "report written to" in done.stdout


def test_html_stands_alone(tmp_path):
    target = tmp_path / "report.html"
    done = run("plan", str(BUNDLED), "--gpu", "h100:4", "--html", str(target))
    assert done.returncode == 0, done.stderr
    page = target.read_text()
    assert "src=" not in page
    assert "default-src 'none'" in page
    assert "KV tokens" in page
    assert list(tmp_path.iterdir()) == [target]
    failed = run("plan", str(BUNDLED), "--gpu", "h100", "--html", str(tmp_path / "none" / "report.html"))
    assert failed.returncode == 8
    assert failed.stderr.count("\n") == 1


def test_accuracy_without_launches_says_so():
    done = run("plan", "--accuracy")
    assert done.returncode == 0
    assert "no launch was recorded yet" in done.stdout
    assert json.loads(run("plan", "--accuracy", "--json").stdout)["figures"] == []


def test_the_published_schema_is_what_plans_satisfy():
    published = json.loads((ROOT / "docs" / "reference" / "plan.schema.json").read_text())
    assert published == plan_schema()
    plan = json.loads(run("plan", str(BUNDLED), "--gpu", "h100:4", "--price", "2", "--explain", "--json").stdout)
    jsonschema.validate(plan, published)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**plan, "kv_blocks": "many"}, published)
