"""Batches of trainings and notebooks, the engines that do them, and the command line."""
