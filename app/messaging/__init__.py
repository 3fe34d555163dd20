"""FHIR messages in: what `$process-message` takes, whom and what a message is about, and what is answered.

taking               takes a message: one transaction, and one answer however often it comes
message_events       lists the events whose messages are taken
message_bundle       reads a message Bundle, and checks what it must have
entries              finds the record that each entry of a message is or becomes
contents             says what is to be stored of an entry
message_times        knows which records newer messages have told of
writes               plans all that a message writes
receipts             keeps which messages were taken, and what they were answered
answers              makes the response message

https://hl7.org/fhir/R4/messaging.html
docs/messages.md
"""
