"""What concerns practices: the Subscriptions that the server keeps for them, and what keeps notices from them.

endpoint_subscriptions  keeps a Subscription for each Endpoint of a primary care practice
endpoint_confirmation   says which Endpoints may be called unasked, and asks a person about the others
endpoint_tasks          lists Endpoints with which something is amiss in one review Task
endpoint_upkeep         looks at these again: all at each start, those in error by probes
no_recipient            records fired topics that no practice could be told of
missed_notices          records what waited for a practice when its Subscription was ended
untold_review           asks a person about these, once for each cause and practice, with a count
untold_shares           gives what is hidden from somebody a review Task of its own
untold_carried          carries it there when it comes to be hidden, and back
silence                 says why nobody was told of a record that has no row
mended_causes           tells of them once their cause is gone
taken_back              knows what is not so any more, and is not told
unmatched_review        asks a person about events that could not be matched
subscription_review     asks a person about a Subscription that is in error
encounter_review        asks a person about a visit without a known patient, or told in part
consent_review          asks a person about Consents that are proposed or unclear
ambiguous_patient_review  asks a person about patients of whom a message may mean either
taken_id_review         asks a person about an id under which two organizations have a record
steering_review         asks a person about what steers the server and was stored while anybody could store it

docs/routing.md, docs/encounters.md, docs/consent.md
"""
