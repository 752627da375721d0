"""The verifier's shell: HTTP around the pure core, one file a resource."""
