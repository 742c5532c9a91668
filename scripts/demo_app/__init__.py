"""Parts of ./scripts/demo."""
