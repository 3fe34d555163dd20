"""Bulk Data: exports that are asked for once, written in the background and fetched as NDJSON files.

https://hl7.org/fhir/uv/bulkdata/STU2/export.html and docs/bulk.md
"""
