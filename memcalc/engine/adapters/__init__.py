"""What fine-tuning adds to a decoder: parameters, operators, packed bases, and what goes together."""
