"""Location.near: places within a distance. https://hl7.org/fhir/R4/location.html#search

`latitude|longitude|distance|units`: a distance along the great circle, in km, m or miles (UCUM), km if it is not said.

A position is stored as a GeoJSON point under a 2dsphere index that only Location has. A bounding box over two numbers
would need no such index, but it reads all rows of its band of latitude and fails at the poles and the date line.
MongoDB measures `$centerSphere` as an angle on a sphere, and so does memory, so both give the same answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import asin, cos, isfinite, pi, radians, sin, sqrt
from typing import Any

from pymongo import IndexModel

from app.search.escaping import split, unescape
from app.search.parameter import AnyOf, Condition, Fields, Filter, Parameter

FIELD = "position"
# The mean radius that MongoDB's documentation gives for turning a distance into an angle.
_EARTH_KM = 6378.1
_KILOMETRES: Mapping[str, float] = {"km": 1, "m": 0.001, "[mi_i]": 1.609344, "[mi_us]": 1.609347219}
# What "near" means where the client does not say.
DEFAULT_KM = 50.0


def index_model() -> IndexModel:
    """The index on positions; locations without one are not in it."""
    return IndexModel([(FIELD, "2dsphere")], name=FIELD)


def add_position(position: Any, fields: dict[str, Any]) -> None:
    """Reader a Location.position; one that is nowhere on earth cannot be found."""
    latitude, longitude = float(position.get("latitude", 91)), float(position.get("longitude", 181))
    if _is_on_earth(latitude, longitude):
        fields[FIELD] = {"type": "Point", "coordinates": [longitude, latitude]}


def _is_on_earth(latitude: float, longitude: float) -> bool:
    return abs(latitude) <= 90 and abs(longitude) <= 180


@dataclass(frozen=True, slots=True)
class Near:
    """The position lies within `angle` (radians, at the centre of the earth) of a point in degrees."""

    latitude: float
    longitude: float
    angle: float

    def filter(self) -> Filter:
        circle = [[self.longitude, self.latitude], self.angle]
        return {FIELD: {"$geoWithin": {"$centerSphere": circle}}}

    def matches(self, fields: Fields) -> bool:
        if FIELD not in fields:
            return False
        longitude, latitude = fields[FIELD]["coordinates"]
        return _angle(self.latitude, self.longitude, latitude, longitude) <= self.angle


def _angle(latitude: float, longitude: float, to_latitude: float, to_longitude: float) -> float:
    """The angle between two points in degrees, by the haversine formula."""
    north, east = radians(to_latitude - latitude), radians(to_longitude - longitude)
    across = cos(radians(latitude)) * cos(radians(to_latitude)) * sin(east / 2) ** 2
    return 2 * asin(sqrt(min(1.0, sin(north / 2) ** 2 + across)))


def condition(parameter: Parameter, modifier: str | None, texts: Iterable[str]) -> Condition:
    """What any of the values of one request parameter ask for."""
    if modifier is not None:
        raise parameter.unknown_modifier(modifier)
    first, *others = (_one(parameter, text) for text in texts)
    return AnyOf((first, *others)) if others else first


def _one(parameter: Parameter, text: str) -> Near:
    parts = [unescape(part) for part in split(text, "|")]
    if len(parts) not in (2, 3, 4):
        raise parameter.malformed("latitude|longitude|distance|units")
    latitude, longitude = (_number(parameter, part) for part in parts[:2])
    if not _is_on_earth(latitude, longitude):
        raise parameter.malformed("a latitude within 90 and a longitude within 180 degrees")
    distance = _number(parameter, parts[2]) if len(parts) > 2 and parts[2] else DEFAULT_KM
    unit = parts[3] if len(parts) > 3 and parts[3] else "km"
    if unit not in _KILOMETRES or distance < 0:
        raise parameter.malformed(f"a distance in one of {', '.join(_KILOMETRES)}")
    return Near(latitude, longitude, min(distance * _KILOMETRES[unit] / _EARTH_KM, pi))


def _number(parameter: Parameter, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not isfinite(number):
        raise parameter.malformed("latitude|longitude|distance|units")
    return number
