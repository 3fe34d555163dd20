"""Whether a notice may be told, judged when it is sent: what patients have consented to, and how content is labelled.

    labels       what meta.security says of a resource
    provisions   what one Consent answers to one question
    recipients   who a Subscription's notices go to
    judgement    what all Consents and labels come to
    gate         asked by the sender: reads Consents once for all notices of a moment

docs/consent.md lists the encodings that count.
"""
