"""Simulated experts for demonstrations and benchmarks. Their ratings are marked simulated wherever they appear."""
