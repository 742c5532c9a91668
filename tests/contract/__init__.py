"""One suite per driver protocol; the real driver and its fake pass the same one."""
