"""Pictures and small text versions of charts, each drawn from its JSON object alone."""
