"""The store: resources in MongoDB, and the single way to write them.

store              reads current versions, versions and terms; `Store.commit` is the only write
commit             writes changes, versions, events and audit rows in one transaction
commit_unit        prepares what one commit wants written
guards             keep two conditional writes from both seeing nothing
lost_races         says which versions that a write was judged by have moved on
events             are committed changes, and the rows that tell of them
format             says in which format the database is, and brings it forward
endpoint_headers   seals what older servers left open, a step of the format
shared_lanes       puts deliveries into the lanes that Subscriptions share, a step of the format
reindexing         extracts stored resources anew, and learns clients' search parameters
shared_settings    has the rows that all processes share

docs/decisions/0002-one-write-path.md
"""
