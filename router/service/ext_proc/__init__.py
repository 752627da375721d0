"""The router in front of other gateways: Envoy asks which nodes a request may go to (docs/other-gateways.md)."""
