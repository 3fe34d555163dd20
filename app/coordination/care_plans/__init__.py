"""Care plans: a practice gets a copy, hears what changes, and once a year what has changed since.

quiet_period          sets a quiet timer for each plan that a change concerns, and tells when it fires
plan_notices          puts a notice down, carries it out and remembers the state that was told
addressees            says whom the Communication of a notice is for
annual                sends the yearly summary on the anniversary of the last notice
state                 reads a plan with its goals, activities, teams and risk tier, pinned to versions
changes               compares two states and tells the difference as data and as sentences
difference            is one change of a plan, and says what counts as one
activities            compares goals and activities
members               compares care teams and finds the point of contact
record                gathers what the patient's record adds to a document
document              builds the document Bundle and its DocumentReference
document_narrative    writes the document's text as XHTML
lines                 writes one line for each thing in a plan or record
wording               puts codes, dates and references into words

docs/care-plans.md
"""
