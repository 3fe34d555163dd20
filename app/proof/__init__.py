"""Proof: who was told what and when, as resources that outlast the ledger, and what they add up to.

notice           reads a delivery row with all that it proves
communication    shows it as a Communication, and reads one back
audit_event      shows it as an AuditEvent
publisher        stores both for settled notices, in the background
unpublished      sets notices aside that cannot be published
visible_notices  finds the notices that a caller may see
names            finds which of the three required names notices have lacked
days             finds the calendar days where a facility is
stays            lists admissions and discharges of a period with what practices received
timeliness       counts how many were received in time
measure_report   shows the count as a MeasureReport and as CSV
csv_text         writes tables as CSV

docs/proof.md
"""
