"""The router: sends work only to nodes with fresh passing results (RFC 9334 §3, Relying Party)."""
