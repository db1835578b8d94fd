"""Several processes for the control connections of one router: see `supervisor`."""
