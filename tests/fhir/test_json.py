"""JSON in and out: nothing lost, nothing doubtful let in, nothing echoed."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest

from app.errors import BadRequest
from app.fhir.json import MAX_DEPTH, decode, encode
from tests.shared_data import SHARED, needs_shared


def nested(levels: int) -> bytes:
    """An object whose arrays bring it to so many levels."""
    return b'{"a":' + b"[" * (levels - 1) + b"]" * (levels - 1) + b"}"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        pytest.param(b"", "ends too early", id="empty"),
        pytest.param(b'{"resourceType":', "ends too early", id="cut-off"),
        pytest.param(b'{"a":1}x', "trailing characters", id="trailing"),
        pytest.param(b'{"a":1,}', "trailing comma", id="trailing-comma"),
        pytest.param(b"{'a':1}", "byte 1", id="single-quotes"),
        pytest.param(b'{"a":01}', "invalid number", id="leading-zero"),
        pytest.param(b"[]", "must be a JSON object", id="array"),
        pytest.param(b'"a"', "must be a JSON object", id="string"),
        pytest.param(b"null", "must be a JSON object", id="null"),
        pytest.param(b'{"a":NaN}', "byte 5", id="nan"),
        pytest.param(b'{"a":-Infinity}', "Malformed", id="infinity"),
        pytest.param(b'{"a":"\xff"}', "Not UTF-8 at byte 6", id="not-utf-8"),
        pytest.param(b'{"a":"\xed\xa0\x80"}', "Not UTF-8", id="surrogate-bytes"),
        pytest.param(rb'{"a":"\ud800"}', "Malformed", id="high-surrogate-at-the-end"),
        pytest.param(rb'{"a":"\ud800abcdefgh"}', "surrogate", id="high-surrogate"),
        pytest.param(rb'{"a":"\udc00"}', "surrogate", id="low-surrogate"),
        pytest.param(rb'{"\ud800bcdefgh":1}', "surrogate", id="surrogate-in-a-key"),
        pytest.param(rb'{"a":"b\u0000c"}', "null character", id="null-character"),
        pytest.param(rb'{"a\u0000":1}', "null character", id="null-character-in-a-key"),
        pytest.param(b'{"a":"b\x00c"}', "byte 7", id="bare-null-character"),
        pytest.param(b'{"a":' + b"9" * 5000 + b"}", "out of range", id="integer-of-5000-digits"),
        pytest.param(b'{"a":1e9999999999999999999}', "out of range", id="exponent"),
        pytest.param(nested(MAX_DEPTH + 1), "deeper than", id="one-level-too-deep"),
        pytest.param(nested(900), "deeper than", id="deep"),
        pytest.param(b'{"a":' * 100_000, "deeper than", id="very-deep"),
    ],
)
def test_refused(body: bytes, said: str):
    with pytest.raises(BadRequest, match=said) as refused:
        decode(body)
    assert refused.value.issues[0].code == "structure"


@pytest.mark.parametrize(
    ("body", "path"),
    [
        pytest.param('{"resourceType":"Patient","id":"1","id":"2"}', "Patient.id", id="top"),
        pytest.param('{"id":"1","id":"2"}', "Resource.id", id="no-type"),
        pytest.param('{"resourceType":5,"a":1,"a":1}', "Resource.a", id="type-is-no-string"),
        pytest.param(
            '{"resourceType":"Patient","name":[{},{"family":"a","family":"a"}]}',
            "Patient.name[1].family",
            id="in-a-list",
        ),
        pytest.param(
            '{"resourceType":"Patient","meta":{"a":1,"a":2},"meta":{}}',
            "Patient.meta",
            id="inside-a-replaced-value",
        ),
        pytest.param('{"resourceType":"P","a" :1,"a"\r\n\t: 2}', "P.a", id="white-space"),
        pytest.param(r'{"resourceType":"P","a":1,"\u0061":2}', "P.a", id="escaped-key"),
        pytest.param(
            r'{"resourceType":"P","a":1,"a":2,"t":"\u003a"}', "P.a", id="hidden-by-an-escaped-colon"
        ),
        pytest.param(
            r'{"resourceType":"P","a":1,"a":2,"t":"\u003A"}', "P.a", id="hidden-by-a-capital-escape"
        ),
        pytest.param(
            r'{"resourceType":"P","a":{"b":"::::"},"a":"\"\u0020:"}', "P.a", id="colons-in-strings"
        ),
    ],
)
def test_a_repeated_key_is_refused_and_named(body: str, path: str):
    with pytest.raises(BadRequest, match="twice") as refused:
        decode(body.encode())
    assert refused.value.issues[0].expression == (path,)


def test_a_repeated_key_of_odd_characters_is_not_echoed():
    with pytest.raises(BadRequest) as refused:
        decode(b'{"resourceType":"P","<secret>":1,"<secret>":2}')
    assert refused.value.issues[0].expression == ("P",)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    "text",
    [
        r'{"a":"\u0022:\u003a\u003A","b":":"}',
        r'{"a":"\\u0000","b":"\\\\u0000"}',
        '{ "a" : { "b" : [ ] } ,\n"c"\t:\r\n1 }',
        r'{"a":"\ud83d\ude00 \u00e9"}',
        '{"a":123456789012345678901234567890}',
        "{}",
    ],
)
def test_accepted_as_the_standard_library_reads_it(text: str):
    assert decode(text.encode()) == json.loads(text)
    assert json.loads(encode(decode(text.encode()))) == json.loads(text)


def test_a_byte_order_mark_is_skipped():
    assert decode(b'\xef\xbb\xbf{"a":1}') == {"a": 1}


def test_the_deepest_body_that_is_accepted():
    assert decode(nested(MAX_DEPTH))


@pytest.mark.parametrize(
    "digits", ["1.50", "0.000", "-0.0", "100", "1E+2", "1.5E+3", "1E-12", "-7.25"]
)
def test_digits_are_kept(digits: str):
    assert encode(decode(f'{{"a":{digits}}}'.encode())) == f'{{"a":{digits}}}'.encode()


def test_only_the_spelling_of_an_exponent_may_change():
    assert decode(b'{"a":1.00e2}')["a"] == Decimal("1.00e2")
    assert encode(decode(b'{"a":1.00e2}')) == b'{"a":100}'


def exact(text: bytes) -> Any:
    """JSON with its numbers as they are spelt."""
    return json.loads(text, parse_float=lambda digits: ("decimal", digits), parse_int=str)


@needs_shared
def test_every_official_example_comes_back_digit_for_digit():
    changed = []
    for path in sorted((SHARED / "data" / "r4-examples").glob("*.json")):
        body = path.read_bytes()
        if exact(encode(decode(body))) != exact(body):
            changed.append(path.name)
    assert changed == []
