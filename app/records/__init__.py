"""The contract of storage: what a version of a resource is, and what may be asked of a store. No rule is judged here.

versions    are versions as they are stored, and changes as they are about to be written
reader      is what search, attribution, consent and everything above may ask of a store (`Reader`, `ResourceStore`)
"""
