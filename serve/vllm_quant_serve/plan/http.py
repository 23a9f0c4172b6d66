"""``POST /plan`` for a FastAPI app: the same question and answer as ``vllm-quant plan --json``. No torch."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import ConfigDict, ValidationError, create_model

from vllm_quant_plugin.checkpoint import Checkpoint
from vllm_quant_plugin.errors import NoFeasiblePlanError, VqpError
from vllm_quant_serve.plan.api import make_plan
from vllm_quant_serve.plan.request import PlanRequest

# ``exact`` starts a process for half a minute: not something to do on request.
_REFUSED = ("exact",)


def _body_model() -> Any:
    """The fields of ``PlanRequest`` and ``config``, a config.json given inline; unknown fields are refused."""
    import typing

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


def _failure(error: VqpError) -> JSONResponse:
    """409 when nothing fits, 422 when the question or the model is wrong."""
    status = 409 if isinstance(error, NoFeasiblePlanError) else 422
    content = {"error": {"message": error.message, "hint": error.hint, "exit_code": error.exit_code}}
    return JSONResponse(content, status)


def answer(body: dict[str, Any]) -> JSONResponse:
    """The plan for a JSON body, or the error that the command line would print."""
    try:
        fields = PlanBody(**body).model_dump()
    except ValidationError as err:
        first = err.errors()[0]
        where = ".".join(map(str, first["loc"])) or "body"
        return JSONResponse({"error": {"message": f"{where}: {first['msg']}", "hint": "", "exit_code": 2}}, 422)
    config = fields.pop("config")
    checkpoint = None if config is None else Checkpoint(Path(fields["model"]), config)
    try:
        return JSONResponse(make_plan(PlanRequest(**fields), checkpoint).to_dict())
    except VqpError as error:
        return _failure(error)


def plan_router() -> APIRouter:
    """A router with ``POST /plan``."""
    router = APIRouter()

    @router.post("/plan")
    def post_plan(body: dict[str, Any]) -> JSONResponse:
        return answer(body)

    return router
