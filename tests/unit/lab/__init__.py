"""Tests of the test lab itself."""
