"""The tests of the toolchain, in folders that mirror the package."""
