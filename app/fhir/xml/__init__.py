"""FHIR's XML, in and out: the same resource that `fhir_json` knows, driven by R4's definitions.

https://hl7.org/fhir/R4/xml.html
"""

from app.fhir.xml.decoding import FHIR, XHTML, decode, from_element, parse
from app.fhir.xml.encoding import encode

__all__ = ["FHIR", "XHTML", "decode", "encode", "from_element", "parse"]
