"""Search: every setup of a space priced, ranked and explained."""
