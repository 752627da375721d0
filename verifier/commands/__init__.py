"""`touchstone verifier …`, `touchstone policy …`, `touchstone reference …`, `touchstone challenges …`."""
