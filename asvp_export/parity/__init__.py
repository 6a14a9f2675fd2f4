"""Parity: does the exported file restore images as well as the original?"""
