"""The verifier: appraises evidence and signs attestation results (RFC 9334 §3, role Verifier)."""
