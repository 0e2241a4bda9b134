"""The extreme value of one option that fits, by bisection over the exact estimate."""
