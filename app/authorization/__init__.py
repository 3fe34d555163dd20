"""Authorization: what a caller may see and write, judged in one place.

rules               are the tables: which role may do what, to which types, by which relation
access              holds scopes, rules, consent and labels against resources
relations           says how a resource stands to an organization
relationships       says whose patients people are, now
agreements          reads what executed Contracts give
given_records       says which records are among that
attachments         finds the DocumentReferences by which a Binary or Bundle is judged
security_contexts   finds the resources that stand for Binaries as their security contexts
panel               finds the patients of an organization, to narrow a search
membership          finds all members of a plan or Group at once
own_records         reads chosen fields of the records of very many patients, as far as a caller sees them
disclosure          asks consent and labels about reads
told_about          hides what tells of a hidden record
judged_rows         reads the rows that rights are judged by
scope_filters       makes filters of the queries that restrict scopes
sight_reads         reads current rows within a sight, those of one moment together
candidates          pages through what a filter finds and keeps what may be seen
event_sight         says what callers may see of events, many at once
restricted_store    is the store as a caller may see it
subject_store       is the store as far as it is about the patients of one matter
write_check         judges the changes of one commit before they are written
named_resources     judges what a write names: whose word it is, and where its references lead
directory_entries   says what the owner of a directory entry may not change of it
taken_ids           answers a write under an id that a hidden resource has
consent_check       judges those of Consents and security labels

docs/access.md, docs/decisions/0010-access.md, docs/decisions/0023-subject-store.md
"""
