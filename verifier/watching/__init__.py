"""Watching a log from outside: read it, verify all of it, and witness it.  It needs nothing but the log's public key."""
