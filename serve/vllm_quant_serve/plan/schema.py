"""The JSON Schema of ``plan --json``: ``python -m vllm_quant_serve.plan.schema > docs/plan.schema.json``."""

from __future__ import annotations

import json
from typing import Any


def plan_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of ``Plan.to_dict()``."""
    from pydantic import TypeAdapter

    from vllm_quant_serve.plan.types import Plan

    found = TypeAdapter(Plan).json_schema(mode="serialization")
    found["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    found["title"] = "vllm-quant plan"
    found["properties"]["serve_args"] = {
        "description": "Words to append to `vllm serve MODEL`.",
        "items": {"type": "string"},
        "title": "Serve Args",
        "type": "array",
    }
    found["required"] = [*found["required"], "serve_args"]
    return found


if __name__ == "__main__":
    print(json.dumps(plan_schema(), indent=2))
