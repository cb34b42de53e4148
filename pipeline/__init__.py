"""What runs, in which order, and what is stale: config, plan, artifacts, runner, command line."""
