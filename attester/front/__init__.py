"""TLS in front of a plain engine: for the routers that the verifier knows, and for nobody else."""
