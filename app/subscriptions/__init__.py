"""Who is told what, and how: from a committed event to a notice at a practice's endpoint.

registration   what one Subscription asks for, read out of its resource (classic R4 and topic-based)
topics         SubscriptionTopics: what fires, what can be filtered, what travels along; topic_reader reads their JSON
               (with topic_elements, topic_shapes, fhirpath_criteria), topic_files and topic_store know where it lies
criteria       what a Subscription listens for, compiled; criteria_index finds those that an event can concern, facts is
               a version as both look at it, question the conditions that are asked
registry       the subscriptions of this moment, kept in step with the database: on a shelf, in the few words of watch
explanation    why a version is told or not, for $explain and $dry-run
outbox         event -> delivery rows (rows), numbered from memory (numbering), kept in the ledger
channel_terms  what it asks of its channel
notification   the bodies that are sent; telling reads what they carry, composer puts them together
batching       several events in one notice
channels       how a body leaves, one file per channel type
binding        websocket clients and their tokens; mailbox: to the process that holds a client's connection
ledger_search  the ledger as operators read it; retention: how long it is kept
past           events that were told before: for $events and $resend
topic_basic    topics as resources that R4 clients can read
retry          when to try again; circuit: what a failing endpoint is still trusted with
delivery       one attempt: body, channel, judgement, settlement; backlog: which rows are taken up next
processes      which server processes live, and what dead ones leave to others
lifecycle      handshake, and the status a Subscription is given by the server
worker         the loops that drive all of it
"""
