"""The operator's API beside FHIR: plain JSON under /admin, for administrators.

contexts              makes the contexts that routes act in
operators             serves deliveries and topics, and holds all routes of /admin
client_routes         serves the registry of clients
clock_routes          serves the calendar
event_routes          serves what could not be matched
contract_routes       serves contracts and the timeliness report
dead_letter_routes    serves what was given up
"""
