"""Subscriptions: from a committed event to a notice at a practice's endpoint.

What flows through, in this order:

    store.Store commits -> an Event reaches the listeners
    ledger.event_intake   takes events in, in the order of their versions
    topics                say whether the change fires: a topic and the coding of what happened
    matching              finds the Subscriptions whose criteria hold of it
    ledger.outbox         numbers and inserts one delivery row for each event and Subscription
    sending               takes the first row of each lane, and asks what may be told now
    notices               compose the body: the pinned version and what travels along
    channels              send it, and say what came of it
    sending               retries, settles the row, opens circuits, and sets the Subscription's status

The folders:
    topics/       are SubscriptionTopics, compiled
    matching/     is what Subscriptions ask for, and the index over them
    ledger/       is events, numbers and deliveries as rows
    sending/      is the worker: what is attempted when, and what becomes of it
    notices/      are the bodies
    channels/     are the ways out
    websocket/    is what clients bind
    recipient     says to whom a Subscription's notices go

docs/delivery.md is the contract with receivers; docs/decisions/0004-order-and-numbers-of-notices.md and
docs/decisions/0007-matching-subscriptions.md say why.
"""
