"""Real parts for tests and the demo: a private container engine, an image registry, a sample application.

Nothing here imports pytest, so scripts may use it as well.
"""
