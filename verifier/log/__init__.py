"""
The append-only log: Merkle tree (RFC 9162), signed notes, checkpoints, tiles, proofs and policies (C2SP).  Pure.

Nothing here reads a clock, a file or a socket.  What is malformed or does not hold raises a leaf of
`verifier.errors.LogError`.
"""
