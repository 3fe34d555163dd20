"""Who hears of a patient: whose patient it is at a moment, and what Subscriptions can ask about that.

    claims       what care teams, the patient's record and rosters say
    practices    a practitioner, role or organization as a whole practice with its endpoints
    attribution  who the PCP is, by the order of the sources
    facility     what kind of facility a stay is in
    derived      all of that as search terms, for the filters of topics
    standing     whether a notice that is late still concerns whom it was for
    recipient    to whom a Subscription's notices go

docs/routing.md
"""
