"""Commands that measure; each prints ratios of things measured side by side in one run."""
