"""
Receipts of answers: what a router signs of each, and how that is verified offline.

All but `commands` is pure: `payload` is the format, `tokens` signs and verifies, `batches` has the tree of a batch,
`checking` holds a receipt against what somebody has, `aci` and `air` are the forms of others.
"""
