"""The ledger: committed events, numbered deliveries, and all that was attempted.

event_intake        queues committed events, has them matched and records them in order
event_recorder      matches an event, and records what comes of it
standstill          says since when nothing could be judged at all
recorded_events     remembers what this process has recorded a moment ago
unmatched           has the events that a judge could not decide on
rematching          matches events once more: what was set aside, what a Subscription missed, a new practice
rerouting           tells a patient's practice of now what nobody was told of
untold_rows         keeps the rows of what nobody was told of, until that is mended
missed_rows         knows the rows whose Subscription was ended before they were delivered
outbox              records a batch: numbers, rows, then counters and events
sequence_numbers    remembers the last number of each Subscription and sequence, and its busy lanes
lanes               says which rows are sent one after the other, and in which order
delivery_rows       says what a new row looks like
ledger              claims, renews and closes rows of `deliveries`
settlement          settles rows after an attempt, in bulk
waiting_rows        finds rows that wait for their Subscription, without a look at each
ledger_queries      searches rows for operators and `$events`, and reopens them for `$resend`
open_rows           counts what is open, and says since when
retention           deletes what is older than it is kept
"""
