"""The best plan over device orders, subsets, layers, bits and micro-batch sizes, with a proof. No torch here."""
