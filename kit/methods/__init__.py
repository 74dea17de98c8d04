"""What a method is: criteria, weights, losses and the other parts, and the table of methods."""
