"""The answer to a planning question in JSON: what ``vllm-quant plan --json`` prints, with an HTTP status. No torch."""

from __future__ import annotations

import dataclasses
import json
import typing
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, ValidationError, create_model

from vllm_quant_plugin.checkpoint import Checkpoint
from vllm_quant_plugin.errors import NoFeasiblePlanError, VqpError
from vllm_quant_serve.plan.api import make_plan
from vllm_quant_serve.plan.request import PlanRequest

# ``exact`` starts a process for half a minute: not something to do on request.
_REFUSED = ("exact",)

Answer = tuple[int, dict[str, Any]]


def _body_model() -> Any:
    """The fields of ``PlanRequest`` and ``config``, a config.json given inline; unknown fields are refused."""
    hints = typing.get_type_hints(PlanRequest)
    fields: dict[str, Any] = {}
    for field in dataclasses.fields(PlanRequest):
        if field.name in _REFUSED:
            continue
        default: Any = ... if field.default is dataclasses.MISSING else field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        fields[field.name] = (hints[field.name], default)
    fields["config"] = (dict[str, Any] | None, None)
    return create_model("PlanBody", __config__=ConfigDict(extra="forbid"), **fields)


PlanBody = _body_model()


def failure(status: int, message: str, hint: str = "", exit_code: int = 2) -> Answer:
    """An error as the command line would print it."""
    return status, {"error": {"message": message, "hint": hint, "exit_code": exit_code}}


def answer(body: bytes) -> Answer:
    """The status and the document for a JSON body: 200, 409 when nothing fits, 422 when the question is wrong."""
    try:
        fields = PlanBody(**_object(body)).model_dump()
    except ValidationError as err:
        first = err.errors()[0]
        where = ".".join(map(str, first["loc"])) or "body"
        return failure(422, f"{where}: {first['msg']}")
    except (ValueError, RecursionError) as err:
        return failure(422, f"body: {str(err).splitlines()[0]}", "send one JSON object")
    config = fields.pop("config")
    checkpoint = None if config is None else Checkpoint(Path(fields["model"]), config)
    try:
        return 200, make_plan(PlanRequest(**fields), checkpoint).to_dict()
    except VqpError as error:
        status = 409 if isinstance(error, NoFeasiblePlanError) else 422
        return failure(status, error.message, error.hint, error.exit_code)


def _object(body: bytes) -> dict[str, Any]:
    found = json.loads(body)
    if not isinstance(found, dict):
        raise ValueError("not a JSON object")
    return found
