"""The HTTP side: it decodes requests, calls one function for each, and renders what that returns.

router               holds every FHIR URL and verb, each with the code that the audit records it by
fhir_endpoint        runs what a URL's verb does for whoever asks, and has it rendered or refused
exchange             reads bodies and writes answers
binary_content       reads and writes a Binary's content as it is
transport            gives every request an id, limits, security headers and compression
limits               bounds how often a client may come, how many of its requests are under way, and for how long
understood           refuses what an interaction would drop of a request
audited              puts each request on record, answered or refused
audit_events         answers reads and searches of AuditEvent out of the audit's rows
capabilities         computes the CapabilityStatement from the registries that serve requests
published            stores the server's own definitions and topics as resources
health               answers those who watch a server: alive, ready, metrics
readiness            judges whether this process does what it is there for
measured             keeps answers of the database for those who ask often
export_status        tells how far a Bulk Data export is, and serves its files
smart                answers the discovery document, the token endpoint and the keys of SMART Backend Services
websocket_session    talks to the websocket clients of Subscriptions
websocket_limits     bounds handshakes, open sockets and messages
web_pages            says what a browser may be made to ask by pages from elsewhere
security_headers     names the headers that every answer carries
uvicorn_http         is uvicorn's HTTP/1.1 with limits on headers
uvicorn_websocket    is uvicorn's websocket with limits on frames
admin/               is the operator's API beside FHIR

Starlette is known here and in main.py, and below this room nowhere.
"""
