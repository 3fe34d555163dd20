"""Patches: functions from a resource to a new resource, read from a request's body.

patch_formats     finds the patch of a media type
json_patch        is JSON Patch
xml_patch         is XML Patch
fhirpath_patch    is FHIRPath Patch
path              parses the part of FHIRPath that points at elements
path_steps        follows such a path through the tree
elements          is a resource as a tree of typed elements

https://hl7.org/fhir/R4/http.html#patch
"""
