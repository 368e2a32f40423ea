"""Images, their features, and which client holds which."""
