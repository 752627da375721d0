"""One file per kind of evidence: raw claims in, what is true out."""
