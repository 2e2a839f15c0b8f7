"""The OpenAPI document: what the routes take and answer, bodies from their types."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from cones_registry.errors import EXIT_CODES
from cones_registry.serving.bodies import schemas
from cones_registry.serving.settings import ServiceSettings

_TEXT = {"type": "string"}


def document(settings: ServiceSettings) -> dict[str, Any]:
    """OpenAPI 3.1 of the whole API."""
    security: list[dict[str, list[str]]] = [{"token": []}] if settings.tokens else []
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "cones_registry",
            "version": version("cones-registry"),
            "description": "Pictures with any mix of concepts, drawn together by one unchanged "
            "base model; and the concepts themselves.",
        },
        "security": security,
        "paths": {
            "/v1/images/generations": {
                "post": _operation(
                    "Draw pictures of a prompt that may name concepts",
                    body="ImagesBody",
                    answer={
                        "type": "object",
                        "required": ["created", "data"],
                        "properties": {
                            "created": {"type": "integer"},
                            "data": {"type": "array", "items": _picture()},
                        },
                    },
                )
            },
            "/v1/images/files/{name}": {
                "get": _operation(
                    "A picture that was asked for as url", ["name"], media="image/png"
                )
            },
            "/v1/models": {"get": _operation("The base model", answer={"type": "object"})},
            "/v1/models/{name}": {
                "get": _operation("The base model", ["name"], answer={"type": "object"})
            },
            "/v1/concepts": {
                "get": _operation(
                    "Newest versions of concepts, by owner and name",
                    query=("owner", "tag", "text", "filter", "cursor", "limit"),
                    answer={
                        "type": "object",
                        "required": ["data", "has_more", "next_cursor"],
                        "properties": {
                            "data": {"type": "array", "items": {"type": "object"}},
                            "has_more": {"type": "boolean"},
                            "next_cursor": {"type": ["string", "null"]},
                        },
                    },
                )
            },
            "/v1/concepts/{ref}": {
                "get": _operation(
                    "One version: OWNER/NAME[:VERSION|:ALIAS]", ["ref"], answer={"type": "object"}
                )
            },
            "/v1/compositions": {
                "post": _operation(
                    "What concepts come to together: overlaps, shares, density",
                    body="CompositionBody",
                    answer={"type": "object"},
                )
            },
        },
        "components": {
            "schemas": {**schemas(), "Error": _error()},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(
    summary: str,
    path: list[str] | None = None,
    *,
    query: tuple[str, ...] = (),
    body: str = "",
    answer: dict[str, Any] | None = None,
    media: str = "application/json",
) -> dict[str, Any]:
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": _TEXT} for name in path or ()
    ]
    parameters += [
        {"name": name, "in": "query", "required": False, "schema": _TEXT} for name in query
    ]
    found: dict[str, Any] = {
        "summary": summary,
        "parameters": parameters,
        "responses": {
            "200": {
                "description": "As asked for",
                "content": {media: {"schema": answer or {}}},
            },
            "default": {
                "description": "What was wrong, and what to do",
                "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
            },
        },
    }
    if body:
        schema = {"$ref": f"#/components/schemas/{body}"}
        found["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": schema}},
        }
    return found


def _picture() -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {
            "b64_json": _TEXT,
            "url": _TEXT,
            "seed": {"type": "integer"},
            "concepts": {"type": "array", "items": {"type": "object"}},
        },
    }


def _error() -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["error"],
        "properties": {
            "error": {
                "type": "object",
                "required": ["message", "type", "code"],
                "properties": {
                    "message": _TEXT,
                    "type": {"enum": ["invalid_request_error", "server_error"]},
                    "code": {"enum": sorted(EXIT_CODES.values())},
                    "param": {"type": ["string", "null"]},
                },
            }
        },
    }
