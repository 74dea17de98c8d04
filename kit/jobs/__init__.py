"""What a batch does: plan, tasks, engines, forecast, archive and the command line."""
