"""All device orders and subsets, choices and micro-batch sizes at once, with a bound that holds for all of them."""
