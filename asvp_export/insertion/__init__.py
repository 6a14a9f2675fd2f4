"""Inserting the node and its inverse: the protected module, what its nodes do, and the plan that says which."""
