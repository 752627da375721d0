"""Policies: bundles of Rego, evaluated in worker processes."""
