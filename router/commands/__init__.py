"""`touchstone router …`, `touchstone settle …`."""
