"""Everything on record: who asked, was refused, was told, and changed what, in rows that nobody can change unseen.

    audit            rows, each linked to the one before it in its chain (entry.py, chain.py)
    audit_registry   one sealed line of rows that begins, anchors, closes and retires chains (registry.py)

An AuditEvent is a view of a row (event.py), made when it is read (reading.py). docs/audit.md
"""
