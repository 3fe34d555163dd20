"""FHIRPath and XML patches."""

from __future__ import annotations

from typing import Any


def operation(kind: str, path: str, **parts: Any) -> dict[str, Any]:
    """An operation. `value` is the content of its part; numbers and names are wrapped here."""
    found: list[dict[str, Any]] = [
        {"name": "type", "valueCode": kind},
        {"name": "path", "valueString": path},
    ]
    for name, content in parts.items():
        if name == "value":
            found.append({"name": "value", **content})
        else:
            found.append(
                {
                    "name": name,
                    "valueInteger" if isinstance(content, int) else "valueString": content,
                }
            )
    return {"name": "operation", "part": found}


def parameters(*operations: dict[str, Any]) -> dict[str, Any]:
    return {"resourceType": "Parameters"} | ({"parameter": list(operations)} if operations else {})


def add(path: str, name: str, **value: Any) -> dict[str, Any]:
    return operation("add", path, name=name, value=value)


def insert(path: str, index: int, **value: Any) -> dict[str, Any]:
    return operation("insert", path, index=index, value=value)


def delete(path: str) -> dict[str, Any]:
    return operation("delete", path)


def replace(path: str, **value: Any) -> dict[str, Any]:
    return operation("replace", path, value=value)


def move(path: str, source: int, destination: int) -> dict[str, Any]:
    return operation("move", path, source=source, destination=destination)


def diff(operations: str) -> bytes:
    """An XML Patch."""
    namespaces = 'xmlns:f="http://hl7.org/fhir" xmlns:h="http://www.w3.org/1999/xhtml"'
    return f"<diff {namespaces}>{operations}</diff>".encode()
