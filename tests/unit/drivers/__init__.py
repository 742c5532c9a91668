"""Tests of drivers that need no real part."""
