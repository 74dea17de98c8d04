"""What finished networks show: accuracies under attack, audits, counterfactual weights, statistics."""
