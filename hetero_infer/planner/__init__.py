"""The best plan: coefficients → Pyomo → HiGHS, searched over the micro-batch sizes. No torch here."""
