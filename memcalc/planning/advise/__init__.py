"""Ranked changes that make a setup fit, or go faster; each one is an estimate, none a rule."""
