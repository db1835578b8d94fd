"""What is measured, and how Prometheus hears of it."""
