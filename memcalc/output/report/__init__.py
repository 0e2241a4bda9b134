"""One self-contained HTML page about a setup, made from its JSON object alone."""
