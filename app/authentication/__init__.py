"""Authentication: who asks. Registered clients, their tokens, and the keys behind both.

caller               is who asks, in which role, for which organization, with which scopes
scopes               reads and intersects SMART scopes
clients              keeps the registry of clients
client_assertions    judges the signed assertion by which a client asks for a token
token_endpoint       exchanges an assertion for an access token
access_tokens        issues the server's own tokens and finds the caller of a request (`Authority`)
signing_keys         keeps the keys that tokens are signed with
oidc                 judges tokens of an outside OpenID provider
jwt                  takes tokens and keys of others apart, within bounds
jwks                 fetches and caches key sets and discovery documents
current_caller       says what is left of a client's rights when work goes on without its request
token_request        asks a server for a token as one of its clients

docs/smart.md
"""
