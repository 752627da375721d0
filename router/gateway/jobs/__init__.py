"""
OpenAI's Batch and Files API: requests of a file, done in the background, below live traffic.

A Batch is called a job here, because a batch is one of receipts.
"""
