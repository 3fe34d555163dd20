"""Who was told what, and when: the ledger's rows as proof that lasts, and what the proof adds up to.

    notice         one row of the ledger with all that it proves
    communication  the same as a Communication, and read back from one
    audit_event    the same as an AuditEvent
    names          the three names that a hospital's notice must have
    publisher      keeps these resources, in the background
    days           calendar days where the facility is
    stays          admissions and discharges of a period, with what practices received
    timeliness     how many were received in time, by practice, hospital and month
    report         the same as a MeasureReport and as CSV

docs/proof.md
"""
