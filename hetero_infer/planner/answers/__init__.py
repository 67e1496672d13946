"""What people ask of a plan: why it is so, what would change it, and what else there is."""
