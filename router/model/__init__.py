"""What the router talks about: workloads, nodes, outcomes, and what was measured of nodes.  Pure: no I/O, no clock."""
