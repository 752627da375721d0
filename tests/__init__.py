"""The tests, which trust no authority but their own."""

import os
from pathlib import Path

# To read the system's authorities takes 40 ms, and every router and every session that starts would read them.  This one
# has signed nothing: its key was thrown away.
os.environ["SSL_CERT_FILE"] = str(Path(__file__).parent / "no_authority.pem")
