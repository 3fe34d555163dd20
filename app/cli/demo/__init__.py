"""`carerelay run`: one hospital stay, played against a whole server.

run          sets the stage: database, server, practices, example panel
server       starts the server as a child process and asks it
practices    are the endpoints of three practices, and the notices that came to them
story        plays examples/stay/story.json and checks who was told
"""
