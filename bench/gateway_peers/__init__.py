"""What the gateway is measured with and against: a backend, a load, and its peers."""
