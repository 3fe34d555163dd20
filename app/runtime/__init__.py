"""The process and its place among others: what every room above leans on, without FHIR.

mongo               is the MongoDB client and the seam between its two drivers
driver_waits        keeps the async driver from locking itself
connection_string   judges the options of the MongoDB URI
transactions        runs transactions, and ends those of dead processes
cluster             keeps this process's row, finds silent processes and gives the commit horizon
reservations        let writes that keep losing come first
collections         makes the collections and indexes that are missing
leases              claims rows of work, keeps them while they are done, and gives them up
dead_letters        shows the rows that were given up
process_messages    carries questions from one process to another
group_commit        lets writes of the same moment share a transaction
batched_reads       makes reads by key of the same moment by one query
batch_cache         remembers for a while what was read so
snapshot            reads at one cluster time
time_limit          breaks off a step that everybody waits for
clock               is the calendar, which an operator may put forward
background_tasks    ends tasks for certain
loops               tells how the loops of a part are doing
commit_watch        watches whether commits get through
metrics             counts what a process does
exposition          shows the counts of all processes of a server as one page for Prometheus
pace                lets long work take turns with everybody else
codec_process       has large bodies worked on in a process of its own
codec_worker        is that process
codec_messages      says what the two tell each other
child_process       starts children that end with their parent
embedded_mongod     runs a MongoDB for development
mongod_log          keeps its log, without what clients asked
secrets             seals secrets at rest
masking             shows secrets in headers as everybody but their writer sees them
logs                writes lines with their fields, and exceptions without their texts
"""
