"""Pictures in one style, and what the explore notebook shows."""
