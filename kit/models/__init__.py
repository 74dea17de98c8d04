"""Networks, several of them as one program, and what a CPU computes slowly in them."""
