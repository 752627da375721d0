"""Real inference engines, in an environment of their own: ``make test-engines``."""
