"""FHIR R4 itself: its definitions and its formats, without a database or a network.

definitions            reads R4's structures, search parameters, required codes and compartments from profiles/
element_definitions    lists how a type's elements are written, for XML and patches
codes                  names our own extensions, code systems and codes
code_lists             publishes our own code lists
fhirpath               parses the expressions of search parameters and invariants
encounter_status       says how far a stay has come: planned, going on, over, and which ends have come
ids                    says what can be an id, and makes UUIDv7 ids
instants               reads and writes dates, dateTimes and instants by R4's grammar
time_zones             reads the time zone that a resource states of itself
json                   decodes and encodes FHIR's JSON without losing a digit
formats                negotiates JSON and XML
shape                  reads `_format`, `_pretty`, `_summary` and `_elements`, and gives an answer that shape
binary                 turns content of any type into a Binary and back
summary                cuts a resource down to `_summary` and `_elements`
element_budget         bounds what a body will cost, by its bytes
pieces                 cuts a decoded value into short pieces of JSON and joins them again
codec                  is the work on bodies that takes long: decoding, patching, validating, rendering
resource_names         says how people call a resource
links                  finds where a resource leads elsewhere, and exchanges these links
full_urls              says what is wrong with the fullUrl of a Bundle's entry
entry_references       says what the references of a Bundle's entries mean
meta                   carries profiles, tags and labels over from version to version
validation/            judges a resource by R4's definitions
xml/                   decodes and encodes FHIR's XML
patch/                 applies JSON, XML and FHIRPath patches
"""
