"""The attester: what a GPU node says about itself, signed (RFC 9334 §3, role Attester)."""
