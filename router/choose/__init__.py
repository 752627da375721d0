"""Which node gets a request: gates, the candidate index, ranking and decisions.  Pure and replayable."""
