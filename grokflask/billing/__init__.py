"""What a request may cost, and what it did cost: prices, bills, and money in ticks."""
