"""Answers that are known beforehand: what is asked, what was given, and what follows from it.  Pure."""
