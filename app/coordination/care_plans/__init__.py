"""Care plans: a practice gets a copy, hears what changes, and once a year what has changed since.

quiet_period          sets a quiet timer for each plan that a change concerns, and tells when it fires
plan_notices          puts a notice down, carries it out and remembers the state that was told
plan_notice           is one notice: its trigger, text and Communication
addressees            says whom the Communication of a notice is for
replacement           compares a plan with the one that it replaces
annual                sends the yearly summary on the anniversary of the last document
copies                sends the plan to a practice that has come to its patient
responsible           says who the patient's practices are, and by which Subscriptions they hear of plans
state                 reads a plan with its goals, activities, teams and risk tier, pinned to versions
changes               compares two states and tells the difference as data and as sentences
difference            is one change of a plan, and says what counts as one
activities            compares goals and activities
members               compares care teams and finds the point of contact
record                gathers what the patient's record adds to a document
selection             chooses what of that record each section tells of
document              builds the document Bundle and its DocumentReference
document_forms        makes all forms of a document as resources to be stored
document_narrative    writes the document's text as XHTML
document_page         writes a document as a web page with a print style
document_pdf          sets a document as PDF
document_sections     writes the sections of a document
document_sheet        is what a document says, before it is put into any form
document_summary      writes the summary of one page, and puts the whole document together
clinical_lines        writes one line for each thing in a patient's record
lines                 writes one line for each person, goal and activity
phrases               says what the server says in the language of the member
wording               puts codes, dates and references into words

docs/care-plans.md
"""
