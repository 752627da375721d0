"""
What routers remember, in a database that those of one network share.

Functions on one transaction of the verifier's store kit (`verifier.store.database`).
"""
