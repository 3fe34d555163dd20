"""The network: whom this server may call and how it shows who it is, and who may reach it how often.

egress_policy              says which addresses may be called, and resolves names under that rule
endpoint_credentials       reads what single endpoints ask of callers: signature, certificate, token
notice_signature           signs notices for endpoints that ask for it (HMAC)
backend_services_client    gets tokens as a client of SMART Backend Services
exposure                   says whether settings would open the server to strangers
rate_limit                 is token buckets and a count of what is under way
"""
