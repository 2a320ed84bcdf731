"""Pages for people: the live numbers with the dial, and the description of the addresses; all from this host."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterator, Mapping
from html import escape
from importlib.resources import files
from typing import Any

from fastapi.responses import Response

FILES = (
    ("/", "page.html", "text/html; charset=utf-8"),
    ("/page.css", "page.css", "text/css; charset=utf-8"),
    ("/page.js", "page.js", "text/javascript; charset=utf-8"),
)
"""Addresses, the files that they show, and what these are."""

INFER_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {"type": "object"},
                "example": {
                    "inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [0.5, -1.0]}],
                    "parameters": {"budget": "60%"},
                },
            },
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        },
    },
}
RESUME_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    },
}
BUDGET_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"type": "object"}, "example": {"budget": "50%"}}},
    },
}
PREDICT_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {"schema": {"type": "object"}, "example": {"file": "cat.png", "top_k": "3"}},
            "text/plain": {"schema": {"type": "string"}, "example": "a fine film"},
        },
    },
}


def answer(name: str, kind: str, headers: Mapping[str, str]) -> Callable[[], Awaitable[Response]]:
    """Return what answers with a file of this package."""
    content = (files("eenet.serving") / name).read_bytes()

    async def page() -> Response:
        return Response(content, headers={**headers, "Content-Type": kind})

    return page


def docs(schema: Mapping[str, Any]) -> str:
    """Return a page that lists the addresses of an OpenAPI schema."""
    title = escape(str(schema["info"]["title"]))
    listed = "\n".join(
        line
        for path, methods in schema["paths"].items()
        for method, one in methods.items()
        for line in _described(path, method, one)
    )
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="stylesheet" href="/page.css"></head>\n<body><main><h1>{title}</h1>\n'
        '<p>Every address of this server; <a href="/openapi.json">openapi.json</a> is the same for programs. Errors '
        'are JSON: <code>{"error": "..."}</code>.</p>\n'
        f"{listed}\n</main></body></html>\n"
    )


def _described(path: str, method: str, one: Mapping[str, Any]) -> Iterator[str]:
    yield f"<section><h2><code>{method.upper()} {escape(path)}</code></h2>"
    yield f"<p>{escape(str(one.get('summary', '')))}. {_code(str(one.get('description', '')))}</p>"
    for kind, content in one.get("requestBody", {}).get("content", {}).items():
        example = content.get("example")
        shown = example if isinstance(example, str) else json.dumps(example, indent=1) if example else "bytes"
        yield f"<p>Body as <code>{escape(kind)}</code>:</p><pre>{escape(shown)}</pre>"
    yield "</section>"


def _code(text: str) -> str:
    """Return a text as HTML, with what stands between backticks as code."""
    parts = escape(text).split("`")
    return "".join(f"<code>{part}</code>" if k % 2 else part for k, part in enumerate(parts))
