"""One module per implementation; they import neither each other nor the public functions."""
