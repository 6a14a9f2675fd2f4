"""The seven verbs: one function each, for the command line and for Python alike."""
