"""The FHIRPath of an invariant compiled into a function over JSON, so that no tree is walked when a resource is judged.

http://hl7.org/fhirpath/N1 and https://hl7.org/fhir/R4/fhirpath.html
An element is its JSON value; a primitive without a value is the object of its id and extensions. Names are looked up in
the definitions when they are compiled, so a mistake shows then, and a choice is a few keys to look for.

Where R4 leaves open what an empty result says of an invariant, it is read as it is meant. What is absent equals
nothing, is in no list and neither more nor less, so `repeats = true` fails without `repeats`. What cannot be compared
for sure, as quantities in different units, breaks no rule, nor does a text that is not there, which has no pattern.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from app.fhir.definitions import structure
from app.fhir.fhirpath import (
    Call,
    FhirPathOperation,
    Literal,
    Name,
    Node,
    NotCompilableError,
    This,
    Variable,
    parse,
)
from app.fhir.validation import invariant_values as values
from app.fhir.validation.invariant_elements import (
    Types,
    fields_of,
    keys_of,
    step_to,
    types_of,
    union_of,
)
from app.fhir.validation.invariant_nodes import (
    CONSTANTS,
    LOGIC,
    TESTS,
    is_fixed,
    is_truth,
    needs_scope,
)


@dataclass(slots=True)
class Scope:
    """What an expression may ask for beside the element it is judged at; `memo` holds what is the same all over it."""

    resource: Any
    context: Any
    memo: dict[object, Any] = field(default_factory=dict)


T = TypeVar("T")
Read = Callable[[Any, Scope], list[Any]]
# None is FHIRPath's empty collection.
Truth = Callable[[Any, Scope], bool | None]


@dataclass(frozen=True, slots=True)
class Collection:
    """A part of an expression that gives elements of these types."""

    read: Read
    types: Types


def compiled(expression: str, path: str, type_name: str) -> tuple[Truth, bool]:
    """What an expression says of an element at this path, and whether it needs a Scope to say so.

    `type_name` is the element's type, or again the path of a backbone element. Raises NotCompilableError for what the
    subset lacks and for names that the element has not.
    """
    tree = parse(expression)
    return _Compiler(path, type_name).truth(tree, (type_name,)), needs_scope(tree)


class _Compiler:
    def __init__(self, path: str, type_name: str) -> None:
        self._context = (type_name,)
        root = path.partition(".")[0]
        self._resource: Types = (root,) if structure(root).kind == "resource" else None

    # Truths

    def truth(self, node: Node, types: Types) -> Truth:
        match node:
            case FhirPathOperation(operator, left, right) if operator in LOGIC:
                return values.LOGIC[operator](self.truth(left, types), self.truth(right, types))
            case FhirPathOperation("=" | "!=" as operator, left, right):
                return self._equality(left, right, types, is_negated=operator == "!=")
            case FhirPathOperation("<" | "<=" | ">" | ">=" as operator, left, right):
                return self._comparison(values.ORDER[operator], left, right, types)
            case FhirPathOperation("in", item, container) | FhirPathOperation(
                "contains", container, item
            ):
                return self._membership(item, container, types)
            case FhirPathOperation("is", base, Name(None, type_name)):
                found = self._of_type(base, type_name, types).read
                return lambda value, scope: bool(found(value, scope))
            case Call(base, function, arguments) if function in TESTS:
                return self._test(base, function, arguments, types)
            case _:
                read = self.collection(node, types).read
                return lambda value, scope: values.singleton(read(value, scope))

    def _test(
        self, base: Node | None, function: str, arguments: tuple[Node, ...], types: Types
    ) -> Truth:
        match function, arguments:
            case "not", () if base is not None:
                return values.negation(self.truth(base, types))
            case "exists", ():
                return self._presence(base, types)
            case "empty", ():
                present = self._presence(base, types)
                return lambda value, scope: not present(value, scope)
            case "hasValue", ():
                read = self._base(base, types).read
                return lambda value, scope: values.has_value(read(value, scope))
            case "isDistinct", ():
                read = self._base(base, types).read
                return lambda value, scope: values.is_distinct(read(value, scope))
            case "all", (criterion,):
                items = self._base(base, types)
                read, test = items.read, self.truth(criterion, items.types)
                return lambda value, scope: all(
                    test(item, scope) is not False for item in read(value, scope)
                )
            case "is", (Name(None, type_name),) if base is not None:
                read = self._of_type(base, type_name, types).read
                return lambda value, scope: bool(read(value, scope))
            case (("startsWith" | "contains" | "matches"), (argument,)):
                text, other = self._base(base, types).read, self.collection(argument, types).read
                test_text = values.TEXT_TESTS[function]
                return lambda value, scope: values.of_texts(
                    test_text, text(value, scope), other(value, scope)
                )
        raise NotCompilableError(f"unsupported function {function}()")

    def _presence(self, base: Node | None, types: Types) -> Truth:
        """Whether anything is there; the quickest of all, because most invariants ask little else."""
        if (
            isinstance(base, Name)
            and base.base is None
            and types is not None
            and not self._is_start(base, types)
        ):
            keys = keys_of(fields_of(base.name, types))
            if len(keys) == 1:
                (key,) = keys
                return lambda value, scope: key in value
            if len(keys) == 2:
                first, second = keys
                return lambda value, scope: first in value or second in value
            any_of = frozenset(keys)
            return lambda value, scope: not any_of.isdisjoint(value)
        read = self._base(base, types).read
        return lambda value, scope: bool(read(value, scope))

    def _equality(self, left: Node, right: Node, types: Types, *, is_negated: bool) -> Truth:
        if is_truth(left) or is_truth(right):
            first, second = self.truth(left, types), self.truth(right, types)
            return lambda value, scope: (first(value, scope) == second(value, scope)) != is_negated
        match left, right:
            case Name(None, name), Literal(wanted) if not self._is_start(left, types):
                fields = fields_of(name, types)
                if len(fields) == 1 and not fields[0].is_list:
                    key = fields[0].key
                    return lambda value, scope: (value.get(key) == wanted) != is_negated
        ours, theirs = self.collection(left, types).read, self.collection(right, types).read

        def equal(value: Any, scope: Scope) -> bool:
            found, other = ours(value, scope), theirs(value, scope)
            return (bool(found and other) and found == other) != is_negated

        return equal

    def _comparison(
        self, holds: Callable[[Any, Any], bool | None], left: Node, right: Node, types: Types
    ) -> Truth:
        ours, theirs = self.collection(left, types).read, self.collection(right, types).read

        def compare(value: Any, scope: Scope) -> bool | None:
            found, other = ours(value, scope), theirs(value, scope)
            # One that is absent, or no number where one is asked for, is neither more nor less.
            return holds(found[0], other[0]) if found and other else False

        return compare

    def _membership(self, item: Node, container: Node, types: Types) -> Truth:
        """Whether any of the items is among the others; `when in (...)` is asked of a list, too."""
        wanted, among = self.collection(item, types).read, self._lookup(container, types)
        return lambda value, scope: any(
            values.frozen(each) in among(value, scope) for each in wanted(value, scope)
        )

    def _lookup(self, node: Node, types: Types) -> Callable[[Any, Scope], frozenset[Any]]:
        """What gives a collection as a set; made once where it is the same for every element."""
        read = self.collection(node, types).read
        if not is_fixed(node):
            return lambda value, scope: values.frozen_set(read(value, scope))
        if not needs_scope(node):
            listed = values.frozen_set(read(None, Scope(None, None)))
            return lambda value, scope: listed
        return _remembered(lambda value, scope: values.frozen_set(read(value, scope)))

    # Collections

    def collection(self, node: Node, types: Types) -> Collection:
        """What gives the elements of a node. What starts at a variable is read once for each judgement."""
        made = self._collection(node, types)
        if not isinstance(node, Variable) and is_fixed(node) and needs_scope(node):
            return Collection(_remembered(made.read), made.types)
        return made

    def _collection(self, node: Node, types: Types) -> Collection:
        match node:
            case This():
                return Collection(lambda value, scope: [value], types)
            case Name(None, _) if self._is_start(node, types):
                return Collection(lambda value, scope: [value], types)
            case Name(base, name):
                return self._member(base, name, types)
            case Literal(constant):
                return Collection(lambda value, scope: [constant], ())
            case Variable(name) if name in CONSTANTS:
                constant = CONSTANTS[name]
                return Collection(lambda value, scope: [constant], ())
            case Variable("resource"):
                return Collection(lambda value, scope: [scope.resource], self._resource)
            case Variable("context"):
                return Collection(lambda value, scope: [scope.context], self._context)
            case FhirPathOperation("as", base, Name(None, type_name)):
                return self._of_type(base, type_name, types)
            case FhirPathOperation("|" | "&" | "+" as operator, left, right):
                return self._joined(operator, left, right, types)
            case Call(base, function, arguments) if function not in TESTS:
                return self._call(base, function, arguments, types)
            case _ if is_truth(node):
                test = self.truth(node, types)
                return Collection(lambda value, scope: values.as_items(test(value, scope)), ())
        raise NotCompilableError(f"unsupported: {node}")

    def _base(self, base: Node | None, types: Types) -> Collection:
        return self.collection(This() if base is None else base, types)

    def _is_start(self, node: Node, types: Types) -> bool:
        """Whether the node is the name of the type at hand, as in `Appointment.status`."""
        return isinstance(node, Name) and node.base is None and node.name in (types or ())

    def _member(self, base: Node | None, name: str, types: Types) -> Collection:
        if base is None:
            fields = fields_of(name, types)
            step = step_to(fields, name)
            return Collection(lambda value, scope: step(value), types_of(fields))
        around = self.collection(base, types)
        fields = fields_of(name, around.types)
        step, read = step_to(fields, name), around.read
        return Collection(
            lambda value, scope: values.spread(step, read(value, scope)), types_of(fields)
        )

    def _of_type(self, node: Node, type_name: str, types: Types) -> Collection:
        """A choice restricted to one of its types, or resources of a type."""
        if isinstance(node, Name) and node.base is None and types is not None:
            fields = fields_of(node.name, types)
            # R4 writes Boolean for boolean in one invariant.
            fields = [each for each in fields if each.type_name.lower() == type_name.lower()]
            step = step_to(fields, "") if fields else (lambda value: [])
            return Collection(lambda value, scope: step(value), types_of(fields))
        read = self.collection(node, types).read
        return Collection(
            lambda value, scope: [
                item
                for item in read(value, scope)
                if type(item) is dict and item.get("resourceType") == type_name
            ],
            (type_name,),
        )

    def _joined(self, operator: str, left: Node, right: Node, types: Types) -> Collection:
        first, second = self.collection(left, types), self.collection(right, types)
        ours, theirs = first.read, second.read
        if operator == "|":
            both = union_of(first.types, second.types)
            return Collection(lambda value, scope: ours(value, scope) + theirs(value, scope), both)
        join = values.concatenated if operator == "&" else values.added
        return Collection(lambda value, scope: join(ours(value, scope), theirs(value, scope)), ())

    def _call(
        self, base: Node | None, function: str, arguments: tuple[Node, ...], types: Types
    ) -> Collection:
        if function == "iif":
            return self._iif(arguments, types)
        items = self._base(base, types)
        read = items.read
        match function, arguments:
            case "where", (criterion,):
                test = self.truth(criterion, items.types)
                return Collection(
                    lambda value, scope: [i for i in read(value, scope) if test(i, scope)],
                    items.types,
                )
            case "select", (projection,):
                inner = self.collection(projection, items.types)
                each = inner.read
                return Collection(
                    lambda value, scope: [x for i in read(value, scope) for x in each(i, scope)],
                    inner.types,
                )
            case "combine", (argument,):
                other = self.collection(argument, types).read
                return Collection(
                    lambda value, scope: read(value, scope) + other(value, scope), items.types
                )
            case "intersect", (argument,):
                among = self._lookup(argument, types)
                return Collection(
                    lambda value, scope: [
                        i for i in read(value, scope) if values.frozen(i) in among(value, scope)
                    ],
                    items.types,
                )
            case "trace", (Literal(), *_):
                return items
            case "replaceMatches", (Literal(str(pattern)), Literal(str(text))):
                replace = values.replacement(pattern, text)
                return Collection(lambda value, scope: replace(read(value, scope)), ())
            case _, () if function in values.FUNCTIONS:
                call, keeps = values.FUNCTIONS[function]
                return Collection(
                    lambda value, scope: call(read(value, scope)), items.types if keeps else None
                )
        raise NotCompilableError(f"unsupported function {function}()")

    def _iif(self, arguments: tuple[Node, ...], types: Types) -> Collection:
        criterion, *branches = arguments
        test = self.truth(criterion, types)
        then, *rest = (self.collection(branch, types).read for branch in branches)
        otherwise = rest[0] if rest else (lambda value, scope: [])
        return Collection(
            lambda value, scope: (
                then(value, scope) if test(value, scope) else otherwise(value, scope)
            ),
            (),
        )


def _remembered(read: Callable[[Any, Scope], T]) -> Callable[[Any, Scope], T]:
    place = object()

    def remembered(value: Any, scope: Scope) -> T:
        if place not in scope.memo:
            scope.memo[place] = read(value, scope)
        found: T = scope.memo[place]
        return found

    return remembered
