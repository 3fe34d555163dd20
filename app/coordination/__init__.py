"""What the hub does of itself: after commits, and when a time has come.

    codes        our own code systems, extensions and codes
    clock        what time it is; tests may move it
    reactions    what follows a commit: claimed, repeated after failures, never in the way of a notice
    timers       what is to happen later
    registry     which reactions and timers there are
    hub          all of this with its life
    recently     of whom nothing is amiss
    review       the queue of what a person has to look at

Every other file is about one subject and holds its reactions and timers.
"""
