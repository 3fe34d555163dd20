"""Websocket clients of Subscriptions: what they may bind, and binding it.

socket_tokens    issues and redeems the tokens of `$get-ws-binding-token`
binding          binds a connection, greets it and sends what waits

The connections themselves are app/subscriptions/channels/websocket.py's.
"""
