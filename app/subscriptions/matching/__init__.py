"""Matching: what Subscriptions ask for, and which of them an event concerns.

registration          reads a Subscription, classic or topic-based
channel_terms         reads what it asks of its channel
criteria              compiles what it listens for
criteria_check        says whether criteria can be evaluated at all
judges                are who is asked about an event, each by itself
criteria_index        files criteria by their most selective term
registration_cache    keeps registrations by the hundred thousand, one short string each
text_faults           knows the Subscriptions whose own text cannot be evaluated
registry              has the Subscriptions of this moment
event_matcher         matches events with them
match_context         is a version as criteria see it, references followed
explanation           says why a version is told or not
"""
