"""Who may do what: the caller of every interaction, and where the server may call."""
