"""The strongest protection that a tolerance allows: gains, ranks and layers, and compensation behind the nodes."""
