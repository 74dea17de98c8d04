"""What finished networks show: accuracies, audits, counterfactual weights, statistics."""
