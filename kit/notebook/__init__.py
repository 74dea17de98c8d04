"""What a notebook calls: its checked parameters, its runs, figures and verdicts."""
