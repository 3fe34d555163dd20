"""Rules of single resource types that no definition says, one file each.

type_registry       maps a type to its rule
type_rules          says what a rule is given and gives back
binary_context      refuses a version as security context
care_team           notes which primary care providers a practice or hospital has named itself
encounter           brings messages about a visit into order
visit_order         computes that order, element by element
event_time          finds when what a message tells of happened
endpoint            masks the secrets in an Endpoint's headers
episode_of_care     checks the reason for which case management ended
search_parameter    refuses an active SearchParameter that cannot be searched by
matching_needs      keeps from others what Subscriptions are evaluated by
subscription        refuses what cannot be served, masks secrets and sets the status
subscription_limits bounds how long criteria are, and how many Subscriptions a client has
secret_headers      masks, seals and opens the headers of both
"""
