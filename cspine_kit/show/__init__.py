"""Show: results, the ledger, the state of a run, and pictures of studies."""
