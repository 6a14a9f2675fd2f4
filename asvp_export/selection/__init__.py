"""The layers of a teacher that can carry a node: finding, measuring and choosing them."""
