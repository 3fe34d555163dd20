"""The fullUrl of a Bundle's entry: its form, and what it may not say. https://hl7.org/fhir/R4/bundle.html#bundle-unique

"The fullUrl SHALL NOT disagree with the id in the resource": if it is the address of a resource, type and id are those
of the resource, where that has an id. Senders leave the id of what is to be created out, or name it by a URN.
"""

from __future__ import annotations

import re
from typing import Any

from app.fhir.definitions import SUPPORTED_TYPES

_PLACE = r"([A-Z][A-Za-z]+)/([A-Za-z0-9\-.]{1,64})"
RELATIVE = re.compile(rf"{_PLACE}(/_history/[A-Za-z0-9\-.]{{1,64}})?")
RESTFUL = re.compile(
    rf"([A-Za-z][A-Za-z0-9+.\-]*://.+)/{_PLACE}(/_history/[A-Za-z0-9\-.]{{1,64}})?"
)
_TYPES = frozenset(SUPPORTED_TYPES)
_ABSOLUTE = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*:\S+")
_ORIGIN = re.compile(r"(https?)://([^/?#]+)", re.IGNORECASE)
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}


def fault(full_url: str, resource: Any = None, *, may_have_moved: bool = False) -> str:
    """Why an entry with this resource cannot have this fullUrl; nothing where it can.

    `may_have_moved` is said of a resource whose id is that of its request: the fullUrl may be its address where it was.
    Relative ones, against R4, are sent all the same: names within the Bundle, of nobody's server.
    """
    if not (_ABSOLUTE.fullmatch(full_url) or RELATIVE.fullmatch(full_url)):
        return "A fullUrl is an absolute URL, without blanks"
    url = spelled(full_url)
    found = RESTFUL.fullmatch(url)
    if found is None or found[2] not in _TYPES or not isinstance(resource, dict):
        return ""
    resource_type, resource_id = resource.get("resourceType"), resource.get("id", found[3])
    if resource_type != found[2] or (resource_id != found[3] and not may_have_moved):
        return "The fullUrl disagrees with the type or the id of the resource"
    return ""


def spelled(url: str) -> str:
    """A URL with the scheme and host in lower case, without a port that goes without saying."""
    origin = _ORIGIN.match(url)
    if origin is None:
        return url
    scheme, host = origin[1].lower(), origin[2].lower()
    return f"{scheme}://{host.removesuffix(_DEFAULT_PORTS[scheme])}{url[origin.end() :]}"
