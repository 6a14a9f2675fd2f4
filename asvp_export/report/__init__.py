"""Reports: what was done and measured, for people's tools and for CI."""
