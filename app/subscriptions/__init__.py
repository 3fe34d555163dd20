"""Who is told what, and how: from a committed event to a notice at a practice's endpoint.

registration   what one Subscription asks for, read out of its resource (classic R4 and topic-based)
topics         SubscriptionTopics: what fires, what can be filtered, what travels along; topic_reader reads their JSON
               (with topic_elements, topic_shapes, fhirpath_criteria), topic_files and topic_store know where it lies
trigger_functions  what queryCriteria cannot say; surroundings: what they look up, facility: where a stay is
one_value      filters that a Subscription has to use, always with the same value
criteria       what a Subscription listens for, compiled; criteria_index finds those that an event can concern, facts is
               a version as both look at it, question the conditions that are asked
registry       the subscriptions of this moment, kept in step with the database: on a shelf, in the few words of watch
explanation    why a version is told or not, for $explain and $dry-run
outbox         event -> delivery rows (rows), numbered from memory (numbering), kept in the ledger
channel_terms  what it asks of its channel
notification   the bodies that are sent; telling reads what they carry (alongside: what travels with a focus), composer
               puts them together (template: what notices of one event share, envelope: those of one Subscription)
batching       several events in one notice
channels       how a body leaves, one file per channel type
binding        websocket clients and their tokens; mailbox: to the process that holds a client's connection
ledger_search  the ledger as operators read it; retention: how long it is kept
past           events that were told before: for $events and $resend
topic_basic    topics as resources that R4 clients can read
retry          when to try again; circuit: what a failing endpoint is still trusted with
clearance      what may be told when it is sent: by consent and labels (app/consent), by who is responsible now
delivery       the rows in hand, endpoint by endpoint; attempt: one attempt on them, settlement: what becomes of them;
               backlog: which rows are taken up next
lifecycle      handshake, and the status a Subscription is given by the server
worker         the life of all of it in one process: what it is made of, and the loops that drive it
intake         takes committed events in, has them matched and recorded, in order
succession     new versions of Subscriptions, written here or elsewhere, and what they ask for
chores         what is done beside the loops, and how a loop goes on after a failure
"""
