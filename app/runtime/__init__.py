"""The process itself and its place among others: what every room above may lean on, without FHIR."""
