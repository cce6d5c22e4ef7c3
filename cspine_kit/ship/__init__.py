"""Ship: bundles, the offline kernel, submissions and the ledger. May use every room."""
