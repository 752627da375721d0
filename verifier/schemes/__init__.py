"""One file for each kind of evidence: raw claims in, what is true out.  `registry` lists them."""
