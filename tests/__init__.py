"""The tests, which trust no authority but their own."""

import os

# To read the system's authorities takes 40 ms, and every router and every session that starts would read them.
os.environ.setdefault("SSL_CERT_FILE", os.devnull)
