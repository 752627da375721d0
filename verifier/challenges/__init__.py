"""Single-use challenges: how they are derived from the pool key, posed in a session, and minted."""
