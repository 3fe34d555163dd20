"""The audit: who asked, was refused, was told, and changed what, in rows that nobody can change unseen.

entry              describes one entry: who, what, about whom, with which outcome
log                writes entries as rows of this process's chains, anchors the chains and retires old ones
hash_chain         links rows by their hashes
chain_registry     keeps the sealed line of rows that begins, anchors, closes and retires chains
write_batch        lets entries of the same moment share one insert
refusal_counter    bounds the entries that strangers can cause
recorded           records what is being asked when it ends, by an answer or a failure
balp               shows an entry as an AuditEvent
kept_head          is the registry's head outside of the database: a sealed file, and a syslog
head_keeper        keeps it each minute, and notices what was cut off meanwhile
version_check      compares the audit with the versions of resources
verification       checks that the rows are as they were written
accounting         lists whom a patient's data were shown or sent to

The collections are `audit` and `audit_registry`. docs/audit.md, docs/decisions/0009-audit-chain.md
"""
