"""What the launcher starts, one per slot: they join, share the plan, start the workers and watch them. No torch."""
