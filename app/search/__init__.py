"""FHIR search: what is stored beside a resource, and the MongoDB filter that a query becomes.

https://hl7.org/fhir/R4/search.html

From the resource to what is stored:
    expression            compiles the expressions of SearchParameters into plain accessors
    parameter             is one compiled search parameter, and what a Condition is
    search_parameters     has all parameters of a type, and why some cannot be compiled
    custom                adds the parameters that clients defined
    custom_check          says whether a client's parameter can be searched by
    parameters/           has one file for each type of parameter
    units                 makes UCUM quantities comparable
    words                 makes terms of text, for `_text` and `_content`
    search_state          is what all of this depends on in one app: words, clients' parameters
    contained             gives the fields of contained resources
    group_members         keeps the members of Groups in rows of their own
    extract               gives the stored fields of a resource, and the indexes on them

What is stored:
    terms                 are strings under the one multikey index
    ranges                are dates, numbers and quantities
    spans                 are Periods as pairs of instants

From the request to the answer:
    computed_fields       have MongoDB choose the few values that reads of very many need
    cost                  bounds what one search may ask for
    query                 reads request parameters into a Query
    escaping              splits search values at unescaped separators
    filter                reads `_filter`
    filter_grammar        parses it
    lists                 reads `_list`
    left_out              knows the parameters that narrow nothing
    terminology           reads `:in`, `:below` and the like, by stored ValueSets and CodeSystems
    chain                 reads chained parameters and `_has`
    chain_step            is one step of them, asked from either side
    codes_within          settles the value sets and hierarchies inside a condition
    deferred_condition    is a condition whose answer lies in other documents
    resolution            replaces deferred conditions by conditions on the document itself
    candidate_scan        tests candidates where a deferred condition leads to too much
    sorting               orders a result
    cursor                is where a page begins
    page_links            seals and opens the links between pages, and keeps what is too long for a URL
    include               reads `_include` and `_revinclude` and carries them out
    bundle_writer         joins stored texts into Bundles
    page_bytes            says how much a page holds
    page                  fills a page of a searchset
    explain               tells how MongoDB answered
    system                searches several types
    compartment           searches a compartment
    contained_search      searches contained resources

docs/decisions/0003-stored-shape-and-search-terms.md, docs/decisions/0006-chains-and-cohorts.md,
docs/decisions/0033-page-links.md
"""
