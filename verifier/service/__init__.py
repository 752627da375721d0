"""The verifier's shell: HTTP around the pure core, one file for each resource."""
