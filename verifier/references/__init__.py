"""Reference values, and the pool of challenges minted from them."""
