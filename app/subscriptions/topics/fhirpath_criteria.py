"""fhirPathCriteria of topics: FHIRPath over the versions before and after a change, `%previous` and `%current`.

https://hl7.org/fhir/R5/subscriptiontopic.html. A version that does not exist is empty. The engine takes a quarter of a
millisecond, so it is asked last, and loaded only where a topic uses it.
"""

from __future__ import annotations

from typing import Any

from app.subscriptions.topics.topics import Change, Test


def compiled(expression: str) -> Test:
    """Whether the expression is true of a change. Raises ValueError where it cannot be understood."""
    try:
        import fhirpathpy
    except ImportError:
        raise ValueError("The FHIRPath engine is not installed (package fhirpathpy)") from None
    try:
        evaluate = fhirpathpy.compile(expression)
        evaluate({}, {"previous": [], "current": []})
    except Exception as error:  # the engine raises plain Exceptions
        raise ValueError(f"Not a FHIRPath expression: {str(error)[:200]}") from None

    def test(change: Change) -> bool:
        versions: dict[str, Any] = {
            "previous": change.previous if change.previous is not None else [],
            "current": change.resource if change.resource is not None else [],
        }
        return bool(evaluate(versions["current"] or versions["previous"], versions) == [True])

    return test
