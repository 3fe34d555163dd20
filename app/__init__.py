"""CareRelay: a FHIR R4 server that tells each patient's practice about admissions and care-plan changes."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("carerelay")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0"
