"""
What routers store, in a database that the routers of one network share.

Functions on one transaction of the verifier's store kit (`verifier.store.database`).
"""
