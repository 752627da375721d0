"""The world of `bench.fleet`: who runs nodes, what the verifier and people do, and who asks for work."""
