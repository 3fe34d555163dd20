"""The primitive types: what JSON may carry for each of them.

https://hl7.org/fhir/R4/datatypes.html#primitive
A test answers with a true value where the JSON value is acceptable; it may also raise TypeError for a value
of the wrong JSON type, which lets a bound `fullmatch` be a test by itself. `reason` explains a refusal.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any

from app.fhir.instants import is_date, is_date_time, is_instant, is_time
from app.fhir.validation.findings import json_type
from app.fhir.validation.narrative import is_narrative

Test = Callable[[Any], object]

MAX_STRING = 1024 * 1024
_INT32 = 2**31
# R4 sets no bound to a decimal. These keep arithmetic on hostile numbers cheap, and no measurement
# comes near them.
_MAX_EXPONENT = 308
_MAX_DIGITS = 400
_MAX_BITS = 1024

_match_uri = re.compile(r"\S+").fullmatch
_match_code = re.compile(r"\S+(?:\s\S+)*").fullmatch


def is_string(value: Any) -> bool:
    return type(value) is str and 0 < len(value) <= MAX_STRING


def is_boolean(value: Any) -> bool:
    return value is True or value is False


def is_integer(value: Any) -> bool:
    return type(value) is int and -_INT32 <= value < _INT32


def is_unsigned_int(value: Any) -> bool:
    return type(value) is int and 0 <= value < _INT32


def is_positive_int(value: Any) -> bool:
    return type(value) is int and 0 < value < _INT32


def is_decimal(value: Any) -> bool:
    if type(value) is int:
        return value.bit_length() <= _MAX_BITS
    if type(value) is not Decimal or not value.is_finite():
        return False
    exponent = value.adjusted()
    return -_MAX_EXPONENT <= exponent <= _MAX_EXPONENT and len(value.as_tuple()[1]) <= _MAX_DIGITS


def is_base64(value: Any) -> bool:
    if type(value) is not str or not value:
        return False
    try:
        binascii.a2b_base64(value, strict_mode=True)
    except ValueError:
        # R4 allows white space between the groups of four; binascii does not.
        compact = "".join(value.split())
        try:
            return bool(compact) and binascii.a2b_base64(compact, strict_mode=True) is not None
        except ValueError:
            return False
    return True


def is_xhtml(value: Any) -> bool:
    return is_string(value) and is_narrative(value)


def is_uri(value: Any) -> object:
    return type(value) is str and (_is_plain(value) or _match_uri(value))


def is_code(value: Any) -> object:
    return type(value) is str and (_is_plain(value) or _match_code(value))


def _is_plain(value: str) -> bool:
    """Whether there is no white space of any kind; a quick yes for nearly all uris and codes."""
    return value.isprintable() and " " not in value and value != ""


TESTS: dict[str, Test] = {
    "base64Binary": is_base64,
    "boolean": is_boolean,
    "canonical": is_uri,
    "code": is_code,
    "date": is_date,
    "dateTime": is_date_time,
    "decimal": is_decimal,
    "id": re.compile(r"[A-Za-z0-9\-.]{1,64}").fullmatch,
    "instant": is_instant,
    "integer": is_integer,
    "markdown": is_string,
    "oid": re.compile(r"urn:oid:[0-2](?:\.(?:0|[1-9][0-9]*))+").fullmatch,
    "positiveInt": is_positive_int,
    "string": is_string,
    "time": is_time,
    "unsignedInt": is_unsigned_int,
    "uri": is_uri,
    "url": is_uri,
    "uuid": re.compile(
        r"urn:uuid:[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
    ).fullmatch,
    "xhtml": is_xhtml,
}

_NUMBERS = {"decimal", "integer", "positiveInt", "unsignedInt"}
_FORMS = {
    "base64Binary": "base64",
    "code": "a code (no white space around it, and single spaces inside)",
    "date": "a date (YYYY, YYYY-MM or YYYY-MM-DD) in the calendar",
    "dateTime": "a dateTime (YYYY, YYYY-MM, YYYY-MM-DD or YYYY-MM-DDThh:mm:ss+zz:zz) in the calendar",
    "decimal": f"a decimal of up to {_MAX_DIGITS} digits between 1e-{_MAX_EXPONENT} and 1e{_MAX_EXPONENT}",
    "id": "an id (1 to 64 letters, digits, - and .)",
    "instant": "an instant (YYYY-MM-DDThh:mm:ss.sss+zz:zz) in the calendar",
    "integer": "a whole number of 32 bits",
    "oid": "an OID (urn:oid:...)",
    "positiveInt": "a whole number from 1 to 2147483647",
    "time": "a time (hh:mm:ss)",
    "unsignedInt": "a whole number from 0 to 2147483647",
    "uuid": "a UUID (urn:uuid:... in lower case)",
    "xhtml": "a well-formed XHTML <div> of formatting elements only",
}


def reason(type_name: str, value: Any) -> tuple[str, str]:
    """The issue code and the diagnostics for a value that the type's test refused."""
    expected = "a boolean" if type_name == "boolean" else "a string"
    if type_name in _NUMBERS:
        expected = "a number"
    if json_type(value) != expected:
        return "structure", f"must be {expected} ({type_name}), not {json_type(value)}"
    if value == "":
        return "value", "must not be an empty string"
    if type_name in ("string", "markdown"):
        return "value", f"must not be longer than {MAX_STRING} characters"
    # What was sent is not repeated: it may be anybody's name or number in the wrong place.
    return "value", f"must be {_FORMS.get(type_name, f'a {type_name} (no white space)')}"
