"""The gateway: OpenAI-compatible, sends work to the nodes a decision names."""
