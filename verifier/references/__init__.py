"""Reference values: their formats, their sources, and conflicts between them."""
