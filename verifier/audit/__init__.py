"""Evidence packs for auditors: what a verifier decided in some time, with the proofs of its log, readable offline."""
