"""Consent: whether something may be told to a recipient, whole, as references, or not at all.

labels        reads the security labels of a resource
provisions    answers one question by one Consent
statements    says whom a Consent names, whatever the question
recipients    says who is told, as Consents name them
judgement     weighs all Consents and labels of a patient
redisclosure  is the notice that goes with content of 42 CFR Part 2
directives    reads patients' active Consents, once for all who ask at a moment

docs/consent.md lists the encodings that count.
"""
