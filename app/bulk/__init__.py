"""Bulk Data: exports that are asked for once, written in the background and fetched as NDJSON files.

export_request          reads what `$export` was asked for, and keeps it in the job
export_jobs             keeps the rows of exports, of their files and of the patients in them
exports                 works on exports, one at a time in each process
work                    writes one export from the place that it has reached
cohort                  says whose resources an export holds
referred                finds whom and what the resources of a Group's members refer to
reading                 reads the resources of one type and part, window by window
history_at              reads resources as they were at the moment that the export shows
writing                 compresses lines and appends them to the files
export_authorization    says whether an export is still its client's to have

https://hl7.org/fhir/uv/bulkdata/STU2/export.html and docs/bulk.md
"""
