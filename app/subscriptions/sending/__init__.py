"""Sending: what is attempted when, what may be told, and what becomes of it.

worker                  owns all of this in one process, and runs its loops
subscription_changes    learns new versions of Subscriptions and does what they ask for
lifecycle               proves endpoints, sets statuses and sends heartbeats
backlog                 claims due rows, the first of each lane, and those whose target is ready again
delivery                queues claimed rows at their targets, and has attempts made on them
targets                 says where notices go, how much is in hand for whom, and whom to trust
dispatcher              runs attempts, heartbeats and handshakes of all targets side by side
slots                   shares concurrent attempts fairly
settling                records and settles what came of attempts, in bulk
batching                says which events travel in one notice
attempt                 makes one attempt
recording_check         says what is an event of a Subscription, before it is numbered
told_once               leaves out what another topic tells the same Endpoint
release_check           says what may be sent now, and settles the rest
release_limits          asks consent and labels
owner_rights            asks what the Subscription's owner may see
recheck_recipient       asks whether the patient still is the recipient's
attempt_audit           puts attempts on record
retry                   says when to try again
circuit_breaker         says when a target that fails is tried again
background              runs tasks that nobody waits for, and loops that survive failures
"""
