"""
What the verifier remembers.

`database` is the protocol a driver keeps, `sqlite` the driver; the other modules are
functions on one transaction, so that what belongs together is done together.
"""
