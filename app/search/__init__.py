"""FHIR search: what is stored beside a resource, and the MongoDB filter a query becomes.

https://hl7.org/fhir/R4/search.html

    fhirpath        the grammar of SearchParameter expressions
    expression      compiles them into plain accessors
    parameter       one compiled search parameter
    registry        all parameters of a type, and what could not be compiled
    token reference string uri      stored as terms (terms.py)
    date number quantity            stored as ranges (ranges.py)
    composite special               made of others, or of the document itself
    near lists                      a Location's distance, the entries of a List
    chain link      chained parameters and _has, step by step
    cohort          the members of a Group, kept in rows of their own
    lookup probe    conditions on other documents, and searches driven from the candidates' side
    state           what it depends on in one app
    extract         resource -> stored fields
    query           request parameters -> Query
    sorting cursor  the order of a result, and where a page begins
    include gather  _include and _revinclude, read and carried out
    page            Query -> searchset Bundle
    system compartment      searches over several types

Each kind of parameter is one file with the same few pure functions: `VALUES` and `values` give what is stored for an
element, `condition` reads a search value into a Condition, and a Condition knows its MongoDB `filter()` and whether it
`matches(fields)` in memory.
"""
