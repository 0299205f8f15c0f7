"""The closed loop with simulated experts, on the application itself: one seed in a database of its own."""
