"""What can be told of a part of an invariant's FHIRPath by its form alone.

http://hl7.org/fhirpath/N1
"""

from __future__ import annotations

from app.fhir.fhirpath import Call, FhirPathOperation, Literal, Name, Node, Variable

CONSTANTS = {"ucum": "http://unitsofmeasure.org"}
TESTS = frozenset(
    [
        "exists",
        "empty",
        "not",
        "hasValue",
        "all",
        "isDistinct",
        "startsWith",
        "contains",
        "matches",
        "is",
    ]
)
LOGIC = frozenset(("and", "or", "xor", "implies"))
_RELATIONS = frozenset(("=", "!=", "<", "<=", ">", ">=", "in", "contains", "is"))


def needs_scope(node: Node | None) -> bool:
    """Whether the expression asks for more than the element itself."""
    match node:
        case Variable(name):
            return name not in CONSTANTS
        case Name(base, _):
            return needs_scope(base)
        case Call(base, _, arguments):
            return needs_scope(base) or any(map(needs_scope, arguments))
        case FhirPathOperation(_, left, right):
            return needs_scope(left) or needs_scope(right)
    return False


def is_truth(node: Node) -> bool:
    """Whether the node is true or false rather than elements."""
    match node:
        case FhirPathOperation(operator, _, _):
            return operator in LOGIC or operator in _RELATIONS
        case Call(_, function, _):
            return function in TESTS
    return False


def is_fixed(node: Node | None) -> bool:
    """Whether the node gives the same for every element, as `%resource.type` does."""
    match node:
        case Variable() | Literal():
            return True
        case Name(base, _):
            return is_fixed(base)
        case Call(base, _, arguments):
            return is_fixed(base) and all(isinstance(each, Literal) for each in arguments)
        case FhirPathOperation(_, left, right):
            return is_fixed(left) and is_fixed(right)
    return False
