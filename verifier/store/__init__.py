"""
What the verifier stores.

`database` is the protocol of a driver, and `sqlite` is the driver.  The other modules are functions on
one transaction, so that changes that belong together are made together.
"""
