"""Settlement: what nodes are owed for a period, by what routers have metered; pure but for its commands."""
