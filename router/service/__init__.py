"""The router's own API, and the process."""
