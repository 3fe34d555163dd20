"""Records: versions of resources, changes of them, and the questions that a store answers.

versions    are versions as they are stored, and changes as they are about to be written
reader      is what search, attribution, consent and everything above may ask of a store (`Reader`, `ResourceStore`)
"""
