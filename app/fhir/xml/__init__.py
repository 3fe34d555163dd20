"""FHIR's XML: the same resource that app/fhir/json.py knows, driven by R4's definitions.

decoding    reads XML into a resource
encoding    writes a resource as XML

https://hl7.org/fhir/R4/xml.html
"""

from app.fhir.xml.decoding import FHIR, XHTML, decode, from_element, parse
from app.fhir.xml.encoding import encode

__all__ = ["FHIR", "XHTML", "decode", "encode", "from_element", "parse"]
