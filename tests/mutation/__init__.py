"""Mutation testing: change one expression of the package at a time, and check that a test fails."""
