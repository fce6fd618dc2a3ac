"""The OpenAPI description of the HTTP routes, with the limits of this very server."""

from __future__ import annotations

from typing import Any

from infer import __version__
from infer.serve.options import ServeOptions

_TEXT: dict[str, Any] = {"type": "string"}
_WHOLE: dict[str, Any] = {"type": "integer"}


def description(options: ServeOptions) -> dict[str, Any]:
    """An OpenAPI 3.1 document."""
    limits = options.limits
    secured: dict[str, Any] = {"security": [{"bearer": []}, {"key": []}]} if options.tokens is not None else {}
    refused = {
        str(code): {"description": text, "content": _json({"$ref": "#/components/schemas/Error"})}
        for code, text in {
            400: "Malformed: one line that names the field",
            401: "No token that this server knows",
            404: "No such model or version",
            408: f"The body was not whole after {limits.timeout:g} s",
            413: f"A body of more than {limits.max_body} bytes",
            429: "The queue is full; Retry-After says when to try again",
            500: "The model failed",
            503: "Loading, ending, or too many connections",
            504: f"No answer within {limits.timeout:g} s",
        }.items()
        if code != 401 or options.tokens is not None
    }
    image = {"type": "string", "contentMediaType": "image/*"}
    name = {"name": "model", "in": "path", "required": True, "schema": _TEXT}
    version = {"name": "version", "in": "path", "required": True, "schema": _TEXT}

    def get(summary: str, *parameters: dict[str, Any], kind: str = "application/json") -> dict[str, Any]:
        answer = {"200": {"description": "It", "content": {kind: {"schema": {}}}}}
        return {"get": {"summary": summary, "parameters": list(parameters), "responses": answer, **secured}}

    def infer(*parameters: dict[str, Any]) -> dict[str, Any]:
        body = {"required": True, "content": {
            "application/json": {"schema": {"$ref": "#/components/schemas/InferRequest"}},
            "application/octet-stream": {"schema": {}},
        }}  # fmt: skip
        header = {"name": "Inference-Header-Content-Length", "in": "header", "schema": _WHOLE}
        answer = {"200": {"description": "Outputs", "content": _json({"$ref": "#/components/schemas/InferResponse"})}}
        return {"post": {
            "summary": "Run images: UINT8 pixels, or BYTES of encoded images",
            "parameters": [*parameters, header], "requestBody": body, "responses": {**answer, **refused}, **secured,
        }}  # fmt: skip

    def change(summary: str) -> dict[str, Any]:
        answers = {"200": {"description": "Done"}, "403": {"description": "The server does not allow it"}, **refused}
        return {"post": {"summary": summary, "parameters": [name], "responses": answers, **secured}}

    classify = {
        "summary": f"Name what is on 1 to {limits.max_images} images",
        "parameters": [
            {"name": "model", "in": "query", "schema": _TEXT, "description": "Needed where there are several"},
            {"name": "version", "in": "query", "schema": _TEXT},
            {"name": "top", "in": "query", "schema": {"type": "integer", "minimum": 1}},
        ],
        "requestBody": {"required": True, "content": {
            "image/*": {"schema": image},
            "multipart/form-data": {"schema": {"type": "object", "additionalProperties": image}},
            "application/json": {"schema": {"$ref": "#/components/schemas/ClassifyRequest"}},
        }},
        "responses": {
            "200": {
                "description": "A row for each image",
                "headers": {"Server-Timing": {"schema": _TEXT, "description": "decode, wait and infer, ms"}},
                "content": _json({"$ref": "#/components/schemas/Classified"}),
            },
            **refused,
        },
        **secured,
    }  # fmt: skip
    health = {"get": {"responses": {"200": {"description": "Yes"}, "503": {"description": "No"}}}}
    at = "/v2/models/{model}"
    return {
        "openapi": "3.1.0",
        "info": {"title": "iresnet serve", "version": __version__, "description": "Image classifiers by HTTP"},
        "paths": {
            "/v1/classify": {"post": classify},
            "/v1/models": get("Loaded models"),
            "/v2": get("Metadata of the server"),
            "/v2/health/live": health,
            "/v2/health/ready": health,
            at: get("Metadata of a model", name),
            f"{at}/versions/{{version}}": get("Metadata of a version", name, version),
            f"{at}/ready": get("Whether it is loaded", name),
            f"{at}/config": get("Triton's configuration", name),
            f"{at}/stats": get("Triton's statistics, with the sizes of batches", name),
            f"{at}/infer": infer(name),
            f"{at}/versions/{{version}}/infer": infer(name, version),
            "/v2/repository/index": {
                "post": {
                    "summary": "What is loaded and could be",
                    "responses": {"200": {"description": "It"}},
                    **secured,
                }
            },
            "/v2/repository/models/{model}/load": change("Load a model, or load it again"),
            "/v2/repository/models/{model}/unload": change("Unload a model"),
            "/metrics": get("Metrics for Prometheus", kind="text/plain"),
        },
        "components": {"schemas": _schemas(limits.max_images), **_schemes(options)},
    }


def _schemes(options: ServeOptions) -> dict[str, Any]:
    if options.tokens is None:
        return {}
    key = {"type": "apiKey", "in": "header", "name": "X-API-Key"}
    return {"securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}, "key": key}}


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _list(items: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "array", "items": items, **more}


def _object(required: list[str], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": required, "properties": properties}


def _schemas(most: int) -> dict[str, Any]:
    base64 = {"type": "string", "contentEncoding": "base64"}
    ranked = _object(["index", "label", "score"], index=_WHOLE, label=_TEXT, score={"type": "number"})
    parameters = {"type": "object"}
    tensor = {"name": _TEXT, "datatype": _TEXT, "shape": _list(_WHOLE), "parameters": parameters, "data": _list({})}
    return {
        "Error": _object(["error"], error=_TEXT),
        "ClassifyRequest": _object(
            [],
            image=base64,
            images=_list(base64, minItems=1, maxItems=most),
            model=_TEXT,
            version={"type": ["string", "integer"]},
            top={"type": "integer", "minimum": 1},
        ),
        "Classified": _object(
            ["model", "version", "predictions"],
            model=_TEXT,
            version=_TEXT,
            predictions=_list(_object(["name"], name=_TEXT, top=_list(ranked), error=_TEXT)),
        ),
        "InferRequest": _object(
            ["inputs"],
            id=_TEXT,
            inputs=_list(_object(["name", "datatype", "shape"], **tensor), minItems=1, maxItems=1),
            outputs=_list(_object(["name"], name=_TEXT, parameters=parameters)),
            parameters=parameters,
        ),
        "InferResponse": _object(
            ["model_name", "model_version", "outputs"],
            id=_TEXT,
            model_name=_TEXT,
            model_version=_TEXT,
            outputs=_list(_object(["name", "datatype", "shape"], **tensor)),
        ),
    }
