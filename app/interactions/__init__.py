"""The FHIR interactions on resources, alone and in Bundles.

interactions         has one short function for each interaction
plan                 judges a write and says what it will do, before anything is committed
matches              finds what a conditional write's criteria match
preconditions        reads conditional headers and the Prefer header
references           makes references relative and checks them
server_records       says which records of the past the server writes: these may refer to what has gone
result               is what an interaction returns
history              reads history parameters and builds history Bundles
bundle               runs batches and transactions
bundle_entries       takes one entry's request apart and puts its response together
bundle_references    resolves references between the entries of a Bundle, and conditional ones
criteria_ids         finds the records that criteria name by an id
batch_order          says which entries of a batch go one after the other
transaction_plan     plans the writes of a transaction against what is stored and against each other
overlaps             finds entries of a transaction that are about one resource

https://hl7.org/fhir/R4/http.html
"""
