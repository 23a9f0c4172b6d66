"""The JSON Schemas of ``plan --json`` and ``plan --compare --json``.

``python -m vllm_quant_serve.plan.output.schema > docs/reference/plan.schema.json`` and, with the word ``compare``,
``docs/reference/plan-compare.schema.json``.
"""

from __future__ import annotations

import json
import sys
from typing import Any

DRAFT = "https://json-schema.org/draft/2020-12/schema"


def plan_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of ``Plan.to_dict()``."""
    from pydantic import TypeAdapter

    from vllm_quant_serve.plan.types import Plan

    found = TypeAdapter(Plan).json_schema(mode="serialization")
    found["$schema"] = DRAFT
    found["title"] = "vllm-quant plan"
    found["properties"]["serve_args"] = {
        "description": "Words to append to `vllm serve MODEL`.",
        "items": {"type": "string"},
        "title": "Serve Args",
        "type": "array",
    }
    found["properties"]["explanation"] = {
        "description": "With --explain: how each figure was computed, in sentences.",
        "items": {"type": "string"},
        "title": "Explanation",
        "type": "array",
    }
    found["required"] = [*found["required"], "serve_args"]
    return found


def compare_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of ``plan --compare --json``."""
    from pydantic import TypeAdapter

    from vllm_quant_serve.plan.search.compare import Row

    return {
        "$schema": DRAFT,
        "title": "vllm-quant plan --compare",
        "type": "object",
        "properties": {
            "model": {"type": "string"},
            "methods": {"type": "array", "items": TypeAdapter(Row).json_schema(mode="serialization")},
        },
        "required": ["model", "methods"],
    }


if __name__ == "__main__":
    print(json.dumps(compare_schema() if "compare" in sys.argv[1:] else plan_schema(), indent=2))
