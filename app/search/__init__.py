"""FHIR search: what is stored beside a resource, and the MongoDB filter a query becomes.

https://hl7.org/fhir/R4/search.html

    fhirpath        the grammar of SearchParameter expressions
    expression      compiles them into plain accessors
    parameter       one compiled search parameter
    registry        all parameters of a type, and what could not be compiled
    token reference string uri      stored as terms (terms.py)
    date number quantity            stored as ranges (ranges.py)
    composite special               made of others, or of the document itself
    extract         resource -> stored fields
    query           request parameters -> Query
    sorting cursor  the order of a result, and where a page begins
    page            Query -> searchset Bundle

Each kind of parameter is one file with the same few pure functions: `VALUES` and `values` give what is stored for an
element, `condition` reads a search value into a Condition, and a Condition knows its MongoDB `filter()` and whether it
`matches(fields)` in memory.
"""
