"""`_include` and `_revinclude`: what the matches refer to, and what refers to them.

https://hl7.org/fhir/R4/search.html#revinclude

    _include=Encounter:subject:Patient      _include=Encounter:*      _include=*
    _revinclude=Provenance:target           _revinclude=*
    _include:iterate=Patient:general-practitioner      also applied to what was included, until nothing new comes

References are read from the stored terms, so no text is decoded. A versioned reference brings the current version.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from app.errors import BadRequest
from app.fhir import definitions
from app.search.parameter import Parameter, UnknownParameter
from app.search.search_parameters import parameters

_KINDS = ("_include", "_revinclude")
EVERYTHING = "*"


@dataclass(frozen=True, slots=True)
class Include:
    """`source` is the type whose parameter `code` refers; None stands for any. `target` is the type referred to.

    `is_reverse` starts from what is referred to; `iterates` means that it is applied to included resources, too.
    """

    source: str | None
    code: str | None
    target: str | None
    is_reverse: bool = False
    iterates: bool = False

    def parameters(self, source: str) -> Iterator[Parameter]:
        """The reference parameters of a type that it follows."""
        if self.source not in (None, source):
            return
        found = parameters(source)
        if self.code is not None:
            yield found[self.code]
        else:
            yield from (each for each in found.values() if is_reference(each))

    def leads_to(self, parameter: Parameter, target: str) -> bool:
        """Whether it follows the parameter to this type."""
        return self.target in (None, target) and target in (parameter.targets or (target,))


def is_reference(parameter: Parameter) -> bool:
    return parameter.type == "reference" and bool(parameter.types & {"Reference", "canonical"})


def is_include(name: str) -> bool:
    """Whether a parameter of this name includes."""
    return name.partition(":")[0] in _KINDS


def parse(resource_type: str, name: str, text: str) -> Include:
    """The inclusion that one parameter asks for, in a search on a type ("" for several). Raises BadRequest."""
    kind, _, modifier = name.partition(":")
    if modifier not in ("", "iterate"):
        raise _refused(kind, f"Modifier ':{modifier}' is not supported on '{kind}'")
    is_reverse, iterates = kind == "_revinclude", modifier == "iterate"
    if text == EVERYTHING:
        return Include(None, None, None, is_reverse, iterates)
    parts = text.split(":")
    if len(parts) not in (2, 3) or not all(parts):
        raise _refused(
            kind, f"'{kind}' must look like Type:parameter or Type:parameter:Type", "value"
        )
    source, code = parts[:2]
    target = parts[2] if len(parts) == 3 else None
    for each in (source, target):
        if each is not None and each not in definitions.SUPPORTED_TYPES:
            raise _refused(kind, f"'{kind}' names '{each}', which is no resource type served here")
    found = Include(source, None if code == EVERYTHING else code, target, is_reverse, iterates)
    _check(found, kind, resource_type)
    return found


def _check(include: Include, kind: str, resource_type: str) -> None:
    if include.source is None or (include.code is None and include.target is None):
        return
    if include.code is not None:
        parameter = parameters(include.source).get(include.code)
        if parameter is None:
            raise UnknownParameter(include.source, include.code)
        if not is_reference(parameter):
            raise _refused(
                kind, f"'{include.code}' of {include.source} is no reference to include", "value"
            )
    followed = list(include.parameters(include.source))
    if include.target and not any(include.leads_to(each, include.target) for each in followed):
        raise _refused(kind, f"The reference does not lead to a '{include.target}'", "value")
    _check_start(include, kind, resource_type, followed)


def _check_start(
    include: Include, kind: str, resource_type: str, followed: Iterable[Parameter]
) -> None:
    """An inclusion that cannot start from the matches would do nothing, which nobody asks for."""
    if include.iterates or not resource_type:
        return
    if include.is_reverse:
        starts = any(include.leads_to(each, resource_type) for each in followed)
    else:
        starts = include.source == resource_type
    if not starts:
        raise _refused(
            kind,
            f"'{kind}' does not start from a {resource_type}; "
            f"to start from what was included, write {kind}:iterate",
            "value",
        )


def _refused(name: str, diagnostics: str, code: str = "not-supported") -> BadRequest:
    return BadRequest(diagnostics, code=code, expression=f"http.{name}")


@cache
def included_by(resource_type: str) -> tuple[str, ...]:
    """What `_include` takes in a search on a type."""
    codes = [each.code for each in parameters(resource_type).values() if is_reference(each)]
    return (EVERYTHING, *(f"{resource_type}:{code}" for code in sorted(codes)))


@cache
def including(resource_type: str) -> tuple[str, ...]:
    """What `_revinclude` takes in a search on a type."""
    return (EVERYTHING, *sorted(_referring().get(resource_type, ())))


@cache
def _referring() -> Mapping[str, Sequence[str]]:
    found: dict[str, list[str]] = {}
    for source in definitions.SUPPORTED_TYPES:
        for parameter in parameters(source).values():
            if is_reference(parameter):
                for target in parameter.targets or definitions.SUPPORTED_TYPES:
                    found.setdefault(target, []).append(f"{source}:{parameter.code}")
    return found
