"""What a node says of its GPUs: what the driver names, and what a benchmark run measured."""
