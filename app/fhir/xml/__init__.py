"""FHIR's XML, in and out: the same resource that `fhir_json` knows, driven by R4's definitions.

https://hl7.org/fhir/R4/xml.html
"""

from app.fhir.xml.decoding import decode, from_element
from app.fhir.xml.encoding import encode
from app.fhir.xml.parsing import FHIR, XHTML, parse

__all__ = ["FHIR", "XHTML", "decode", "encode", "from_element", "parse"]
