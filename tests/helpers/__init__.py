"""What several test files, the suites beside them and the benchmarks use."""
