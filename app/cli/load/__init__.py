"""`carerelay load`: Bundles, NDJSON and single resources into any FHIR server.

load        in which order documents go, and what goes side by side
files       which files there are, and the documents in them
plan        the entries of a document, with the ids and references that they are stored with
ids         the ids that a load gives, and where references of a source lead
sources     two sources that use the same ids
bundles     a transaction or batch as one request, and what its answer says of each entry
mending     what is not quite R4, put right before it is sent
server      requests to the server, made again while it is busy
sending     Bundles side by side
singles     resources one by one
messages    FHIR messages, through `$process-message`
outcome     what became of each resource
report      shows progress and the outcome on the terminal
"""
