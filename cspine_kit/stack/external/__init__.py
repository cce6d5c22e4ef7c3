"""Other people's out-of-fold scores, and columns of any kind, in the stack."""
