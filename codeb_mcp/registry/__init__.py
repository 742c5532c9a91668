"""The single source of truth: files, leases, journals and the audit trail."""
